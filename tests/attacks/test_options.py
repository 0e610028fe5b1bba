import pytest

from fp_audit import plugins
from fp_audit.attacks._options import build, options_of
from fp_audit.errors import PluginError, UsageError


def read(name, *pairs):
    return options_of(plugins.load("attacks", name), pairs)


def test_text_becomes_what_the_constructor_names():
    assert read("prune", "rate=0.25", "epochs=3", "flip=yes", "optimizer=adam", "batch=16") == {
        "rate": 0.25,
        "epochs": 3.0,
        "flip": True,
        "optimizer": "adam",
        "batch": 16,
    }


def test_the_last_of_two_counts():
    assert read("prune", "rate=0.1", "rate=0.2") == {"rate": 0.2}


def test_a_value_may_hold_an_equals_sign():
    assert read("extract", "architecture=a=b") == {"architecture": "a=b"}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("rat=0.1", r"'rat=0.1' is no option of prune: expected rate=0.5, schedule=once, epochs=0.0"),
        ("rate", r"'rate' is no option of prune"),
        ("rate=much", r"rate is 'much': expected a number"),
        ("rate=nan", r"rate is 'nan': expected a number"),
        ("batch=2.5", r"batch is '2.5': expected a whole number"),
        ("flip=perhaps", r"flip is 'perhaps': expected true or false"),
        ("optimizer=lion", r"optimizer is lion: expected one of sgd, adam"),
    ],
)
def test_a_wrong_option_says_what_was_expected(pair, message):
    with pytest.raises(UsageError, match=message):
        read("prune", pair)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("prune", {"rate": 1.0}, r"rate is 1.0: expected a share in \[0, 1\)"),
        ("prune", {"rate": -0.1}, "rate is -0.1"),
        ("prune", {"epochs": -1}, "epochs is -1.0: expected 0 or more"),
        ("fine-tune", {"epochs": 0}, "epochs is 0.0: expected more than 0"),
        ("fine-tune", {"batch": 1}, "batch is 1: expected 2 images or more"),
        ("fine-tune", {"learning_rate": 0.0}, "learning_rate is 0.0: expected more than 0"),
        ("fine-tune", {"weight_decay": -1.0}, "weight_decay is -1.0: expected 0 or more"),
        ("fine-tune", {"shift": 1.0}, "shift is 1.0: expected a share"),
        ("fine-tune", {"mode": "all"}, "mode is all: expected one of ftll, ftal, rtll, rtal, ft"),
        ("quantise", {"calibration": 0}, "calibration is 0: expected a number of images above 0"),
        ("extract", {"queries": -1}, "queries is -1: expected 2 images or more, or 0 for all"),
        ("extract", {"queries": 1.5}, "queries is 1.5: expected a whole number"),
        ("extract", {"queries": True}, "queries is True: expected a number"),
        ("extract", {"size": -1}, "size is -1: expected pixels"),
        ("extract", {"architecture": 3}, "architecture is 3: expected text"),
        ("extract", {"rate": 0.5}, "extract has no option 'rate': expected architecture=same, queries=0"),
    ],
)
def test_a_value_out_of_range_says_what_was_expected(name, options, message):
    with pytest.raises(UsageError, match=message):
        build(name, options)


def test_an_unknown_attack_lists_the_known_ones():
    with pytest.raises(
        PluginError,
        match=r"no attack called 'burn': expected one of adversarial-extract, .*, prune, prune-channels, quantise",
    ):
        build("burn", {})


def test_the_name_of_an_attack_records_every_option():
    made = build("quantise", {"mode": "static"})
    assert repr(made) == "quantise(mode=static, per_channel=False, calibration=256)"
