import numpy as np
import pytest
from builders import HF_PROCESSORS, hf_processor, pixels

from fp_audit.errors import CorruptModel, UnsupportedModel
from fp_audit.model import as_images
from fp_audit.preprocess import affine_map
from fp_audit_adapters._hf_processors import to_config, to_preprocess


@pytest.mark.parametrize("kind", HF_PROCESSORS)
def test_processor_defaults_are_transformers_own(kind):
    check_processor(kind, {}, (300, 260))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("ViT", {"size": 24, "resample": 3}),
        ("ViT", {"size": [20, 30], "resample": 1}),
        ("ViT", {"size": {"shortest_edge": 30}, "do_center_crop": True, "crop_size": 24}),
        ("ViT", {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 60, "width": 20}}),
        ("ViT", {"size": 24, "do_rescale": False}),
        ("ViT", {"size": 24, "do_normalize": False, "rescale_factor": 1 / 127.5, "resample": 4}),
        ("ViT", {"size": 24, "resample": 0, "image_mean": [0.1, 0.2, 0.3]}),
        ("Bit", {"size": 24, "do_center_crop": None, "do_normalize": None}),
        ("ConvNext", {"size": 24}),
        ("ConvNext", {"size": {"shortest_edge": 24}, "crop_pct": 0.7}),
        ("ConvNext", {"size": {"shortest_edge": 400}}),
        ("Levit", {"size": 24, "crop_size": 24}),
        ("Levit", {"size": {"height": 24, "width": 28}, "do_center_crop": False}),
        ("PoolFormer", {"size": 24, "crop_size": 24, "crop_pct": 0.8}),
        ("PoolFormer", {"size": {"height": 24, "width": 24}, "crop_size": 20}),
        ("PoolFormer", {"size": {"height": 24, "width": 30}, "crop_size": 20}),
        ("EfficientNet", {"size": 24, "rescale_offset": True, "rescale_factor": 1 / 127.5}),
        ("EfficientNet", {"size": 24, "include_top": False}),
        ("EfficientNet", {"size": 24, "do_normalize": False, "do_center_crop": True, "crop_size": 20}),
        ("MobileViT", {"size": {"shortest_edge": 28}, "crop_size": {"height": 24, "width": 24}}),
        ("MobileViT", {"size": 24, "crop_size": 24, "do_flip_channel_order": False}),
        ("DeiT", {"size": 26, "crop_size": 24}),
        ("Siglip", {"size": 24}),
    ],
)
def test_processor_options_are_transformers_own(kind, config):
    for size in ((41, 53), (53, 41), (24, 24)):
        check_processor(kind, config, size)


def check_processor(kind, config, size):
    images = pixels(1, size) // 2 + 64  # no overshoot: Pillow also clips between its two passes
    wanted = hf_processor(kind, config)(list(images), return_tensors="np")["pixel_values"]
    preprocess = to_preprocess({"image_processor_type": f"{kind}ImageProcessor", **config}, "")
    fitted = affine_map(preprocess, size, 3, 3)
    found = fitted(as_images(images))
    assert found.shape == wanted.shape
    exact = fitted.rows is None
    limit = 1e-5 * np.abs(wanted).max() if exact else 2 / 255 * np.abs(fitted.gain).max()
    assert np.abs(found - wanted).max() <= limit
    again = to_preprocess(to_config(preprocess, 3), "")
    np.testing.assert_allclose(affine_map(again, size, 3, 3)(as_images(images)), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ViTFeatureExtractor", "ViTImageProcessorFast", "ViTImageProcessorPil", None])
def test_old_names_of_processors(name):
    key = "feature_extractor_type" if name and "Feature" in name else "image_processor_type"
    assert to_preprocess({key: name, "size": 24}, "ViT").resize == (24, 24)


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        ({"image_processor_type": "ImageGPTImageProcessor"}, UnsupportedModel, "'ImageGPT' is not among"),
        ({"do_pad": True}, UnsupportedModel, "pads"),
        ({"size": {"longest_edge": 3}}, UnsupportedModel, "size = {'longest_edge'"),
        ({"size": 10**7}, CorruptModel, "1 to 8192 pixels"),
        ({"size": "big"}, UnsupportedModel, "size = big"),
        ({"resample": "cubic"}, CorruptModel, "resample = 'cubic'"),
        ({"image_std": [0, 1, 1]}, CorruptModel, "no deviation 0"),
        ({"image_mean": ["a"]}, CorruptModel, "image_mean = a"),
        ({"rescale_factor": []}, CorruptModel, "rescale_factor"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_pct": 0}, CorruptModel, "crop_pct = 0"),
    ],
)
def test_processors_that_are_refused(config, error, text):
    with pytest.raises(error, match=text):
        to_preprocess(config, "ViT")
