"""The parts of the weights method: alignment, sign test, CKA, merging, places, adapters, differences from a base."""

from itertools import combinations, permutations, product
from math import comb

import numpy as np
import pytest

from fp_audit.errors import NotApplicable
from fp_audit.fingerprints import _relabelled
from fp_audit.fingerprints._adapted import factors, is_adapter, overlap
from fp_audit.fingerprints._closeness import closeness, direction, unbiased_cka
from fp_audit.fingerprints._differences import taken_over
from fp_audit.fingerprints._merging import median, merged
from fp_audit.fingerprints._places import places
from fp_audit.fingerprints._relabelled import relabelled, sign_test
from fp_audit.fingerprints._units import Tensor, align, balanced, profiles
from fp_audit.fingerprints.weights import Weights
from fp_audit.subject import Subject

SHAPES = [(8, 8, 1), (8, 20, 1), (20, 8, 1), (13, 17, 1), (32, 24, 1), (9, 8, 4), (8, 15, 9)]
anything = pytest.mark.parametrize(("shape", "seed"), list(product(SHAPES, (1, 2))))


def drawn(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scored(ours, theirs, base=None):
    method = Weights()
    suspect = Subject(tensors=lambda: theirs)
    if base is not None:
        suspect = suspect.with_base(Subject(tensors=lambda: base))
    return method.compare(method.generate(Subject(tensors=lambda: ours), None, seed=0), suspect)


class TestAlignment:
    @anything
    def test_any_order_and_scale_of_a_copy_is_undone(self, shape, seed):
        a, rng = drawn(seed, shape), np.random.default_rng(seed + 1)
        rows, columns = rng.permutation(shape[0]), rng.permutation(shape[1])
        scales = [8.0 ** rng.uniform(-1, 1, size) for size in shape[:2]]
        b = (a * scales[0][:, None, None] * scales[1][None, :, None])[rows][:, columns]
        found = align(Tensor(a), Tensor(b), rng)
        assert np.array_equal(rows[found.rows], np.arange(shape[0]))
        assert np.array_equal(columns[found.columns], np.arange(shape[1]))
        assert found.cosine == pytest.approx(1, abs=1e-2)

    @anything
    def test_balancing_undoes_scales(self, shape, seed):
        a, rng = np.abs(drawn(seed, shape)) + 0.5, np.random.default_rng(seed)
        scales = [4.0 ** rng.uniform(-1, 1, size) for size in shape[:2]]
        b = (a * scales[0][:, None, None] * scales[1][None, :, None]).astype(np.float32)
        np.testing.assert_allclose(balanced(b), balanced(a), rtol=1e-2)

    def test_rows_and_columns_get_a_mean_square_of_one(self):
        squares = np.square(balanced(drawn(0, (9, 12, 4)))).sum(axis=2)
        np.testing.assert_allclose(squares.mean(axis=1), 1, rtol=1e-3)
        np.testing.assert_allclose(squares.mean(axis=0), 1, rtol=1e-3)

    def test_zeros_stay_zeros(self):
        a = drawn(0, (9, 12, 1))
        a[3] = 0
        assert np.isfinite(balanced(a)).all()
        assert not balanced(a)[3].any()

    def test_profiles_ignore_the_order_of_columns(self):
        a = drawn(0, (9, 12, 4))
        np.testing.assert_array_equal(profiles(a[:, ::-1]), profiles(a))

    def test_the_order_of_an_independent_tensor_carries_nothing(self):
        shares = []
        for seed in range(20):
            found = align(
                Tensor(drawn(seed, (16, 16, 1))), Tensor(drawn(seed + 99, (16, 16, 1))), np.random.default_rng(seed)
            )
            shares.append((found.rows == np.arange(16)).mean())
        assert np.mean(shares) == pytest.approx(1 / 16, abs=0.06)

    def test_units_that_were_cut_out_have_no_counterpart(self):
        a = drawn(0, (20, 24, 1))
        kept = np.random.default_rng(1).permutation(20)[:15]
        found = align(Tensor(a), Tensor(a[kept]), np.random.default_rng(2))
        assert sorted(np.flatnonzero(found.rows < 0)) == sorted(set(range(20)) - set(kept))
        assert all(kept[found.rows[i]] == i for i in kept)


class TestAgreement:
    @pytest.mark.parametrize(("agreed", "units"), [(0, 9), (1, 1), (5, 9), (9, 9), (60, 64)])
    def test_the_sign_test_is_the_tail_of_a_binomial(self, agreed, units):
        expected = sum(comb(units, k) for k in range(agreed, units + 1)) / 2**units
        assert sign_test(agreed, units) == pytest.approx(expected)

    def test_golden_value(self):
        first, second = drawn(0, (16, 20)), drawn(1, (12, 16))
        order = np.random.default_rng(2).permutation(16)
        found = relabelled([first, second], [second[:, order], first[order]], np.random.default_rng(0))
        assert {i: (item.agreed, item.units) for i, item in found.items()} == {0: (16, 16), 1: (16, 16)}
        assert found[0].p_value == found[1].p_value == pytest.approx(2.0**-16)

    def test_orders_that_contradict_each_other_do_not_agree(self):
        first, second = drawn(0, (16, 20)), drawn(1, (12, 16))
        rng = np.random.default_rng(2)
        theirs = [second[:, rng.permutation(16)], first[rng.permutation(16)]]
        assert min(item.p_value for item in relabelled([first, second], theirs, rng).values()) > 0.05

    def test_transposed_tensors_agree_too(self):
        first, second = drawn(0, (16, 20)), drawn(1, (12, 16))
        order = np.random.default_rng(2).permutation(16)
        found = relabelled([first, second], [second[:, order].T, first[order].T], np.random.default_rng(0))
        assert [item.agreed for item in found.values()] == [16, 16]

    def test_only_what_looks_like_a_copy_is_aligned_in_full(self, monkeypatch):
        looked = []
        monkeypatch.setattr(_relabelled, "align", lambda *given: looked.append(given[-1]) or align(*given))
        first, second, third, fourth = (drawn(seed, (160, 160, 9)) for seed in range(4))
        order = np.random.default_rng(4).permutation(160)
        for theirs, units in (([third, fourth], {32}), ([second[:, order], first[order]], {32, 128})):
            looked.clear()
            found = relabelled([first, second], theirs, np.random.default_rng(0))
            assert set(looked) == units
            assert {item.units for item in found.values()} == {max(units)}

    def test_chance_agrees_rarely(self):
        rng = np.random.default_rng(0)
        p = []
        for _ in range(20):
            ours, theirs = ([rng.normal(size=(16, 16)) for _ in range(3)] for _ in range(2))
            p += [item.p_value for item in relabelled(ours, theirs, rng).values()]
        assert min(p) > 0.05


class TestMerging:
    def test_by_hand(self):
        assert merged([0.01]) == 0.01
        assert merged([0.01, 0.5]) == 0.02
        assert merged([0.2, 0.01, 0.02]) == pytest.approx(0.03)
        many = [1e-9, 1e-8, 1e-7] + [1.0] * 17
        assert merged(many) == pytest.approx(2 * 1e-7 * 20 / 3)
        assert merged([1e-9, 1e-8] + [0.9] * 18) == 1
        assert median(many) == 1

    @pytest.mark.parametrize("count", [1, 5, 12])
    def test_it_keeps_its_level_whatever_the_dependence(self, count):
        rng = np.random.default_rng(count)
        alone, same = rng.uniform(size=(4000, count)), np.repeat(rng.uniform(size=(4000, 1)), count, axis=1)
        lone = np.where(np.arange(count) == rng.integers(count, size=(4000, 1)), rng.uniform(size=(4000, 1)), 1.0)
        for p in (alone, same, lone):
            assert np.mean([merged(row) <= 0.05 for row in p]) <= 0.05 + 3 * np.sqrt(0.05 / 4000)


class TestCloseness:
    def test_bits_by_hand(self):
        a = np.array([1.0, 2.0], np.float32)
        assert closeness(a, a).bits == 0
        assert closeness(a, -a).bits == 1 / 32
        assert closeness(a, np.nextafter(a, 9, dtype=np.float32)).bits == 1 / 32

    def test_cka_is_the_u_statistic(self):
        """HSIC_1 over all quadruples of distinct rows."""
        a, b = np.random.default_rng(0).normal(size=(2, 6, 3))

        def hsic(k, m):
            total = 0.0
            for i, j, q, r in permutations(range(len(k)), 4):
                total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
            return total

        k, m = a @ a.T, b @ b.T
        expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
        assert unbiased_cka(a, b) == pytest.approx(expected)

    def test_cka_ignores_rotations_and_is_zero_on_average(self):
        rng = np.random.default_rng(0)
        a = rng.normal(size=(40, 12))
        turn, _ = np.linalg.qr(rng.normal(size=(12, 12)))
        assert unbiased_cka(a, 3 * a @ turn) == pytest.approx(1)
        found = [unbiased_cka(rng.normal(size=(40, 400)), rng.normal(size=(40, 400))) for _ in range(50)]
        assert abs(np.mean(found)) < 0.02
        assert unbiased_cka(a[:3], a[:3]) is None
        assert unbiased_cka(np.zeros((9, 9)), np.zeros((9, 9))) is None

    def test_direction(self):
        a = np.random.default_rng(0).normal(size=(64, 64))
        pruned, coarse = np.where(np.abs(a) > 0.5, a, 0), np.rint(a * 20) / 20
        assert direction([(a, pruned)])["child"] == "suspect"
        assert direction([(pruned, a)])["child"] == "victim"
        assert direction([(a, coarse)])["child"] == "suspect"
        assert direction([(coarse, a)])["child"] == "victim"
        assert direction([(a, a + 1e-3)])["child"] is None


def test_places_by_hand():
    names = {f"net.layer.{i}.{part}.weight": 3 <= i <= 5 or i == 8 for i in range(10) for part in "abc"}
    assert places(names) == "blocks 3 to 5 of net.layer, block 8 of net.layer"
    assert places(names | {"net.layer.4.a.weight": False}) == "blocks 3 to 5 of net.layer, block 8 of net.layer"
    assert places(dict.fromkeys(names, True)) == ""
    assert places(dict.fromkeys(names, False)) == ""
    assert places({"fc.weight": True, "onnx::MatMul_3": False}) == ""


def lora(seed, places=6, rank=4, size=64):
    rng = np.random.default_rng(seed)
    found = {}
    for i in range(places):
        found[f"base.layers.{i}.q.lora_A.weight"] = rng.normal(size=(rank, size))
        found[f"base.layers.{i}.q.lora_B.weight"] = rng.normal(size=(size, rank))
    return found


def turned(tensors, seed, noise=0.0):
    """Write B A as (B R) (R^-1 A), fine-tune it, and store the pairs in another order."""
    rng, found = np.random.default_rng(seed), {}
    for i, (a, b) in enumerate(reversed(factors(tensors).values())):
        turn = rng.normal(size=(len(a), len(a)))
        found[f"other.{i}.lora_A.default.weight"] = np.linalg.inv(turn) @ (a + noise * rng.normal(size=a.shape))
        found[f"other.{i}.lora_B.default.weight"] = (b + noise * rng.normal(size=b.shape)) @ turn
    return found


class TestAdapters:
    def test_factors_are_found_by_name(self):
        assert list(factors(lora(0))) == [f"base.layers.{i}.q" for i in range(6)]
        assert is_adapter(lora(0))
        assert not is_adapter({"a.weight": np.ones((9, 9))})
        assert not factors({"x.lora_A.weight": np.ones((3, 9)), "x.lora_B.weight": np.ones((9, 4))})

    def test_another_basis_is_the_same_product(self):
        ours, theirs = lora(1, places=1), turned(lora(1, places=1), 2)
        found = overlap(*(factors(one).popitem()[1] for one in (ours, theirs)))
        assert found.cosine == pytest.approx(1)
        assert found.shared == pytest.approx(1)
        assert found.p_value < 1e-9

    def test_the_cosine_is_that_of_the_products(self):
        (_, ours), (_, theirs) = (factors(lora(seed, places=1)).popitem() for seed in (1, 2))
        products = [(b @ a).ravel() for a, b in (ours, theirs)]
        expected = np.dot(*products) / np.prod([np.linalg.norm(product) for product in products])
        assert overlap(ours, theirs).cosine == pytest.approx(expected)

    @pytest.mark.parametrize("common", [0, 2])
    def test_up_to_half_of_the_directions_may_be_common(self, common):
        rng = np.random.default_rng(0)
        (a, b) = factors(lora(1, places=1))["base.layers.0.q"]
        for _ in range(20):
            other = rng.normal(size=a.shape)
            other[:common] = a[:common]
            assert overlap((a, b), (other, b)).p_value > 0.05

    def test_adapters_that_only_started_from_one_seed_are_not_alike(self):
        ours, rest = lora(1), lora(2)
        theirs = {name: ours[name] if "lora_A" in name else rest[name] for name in ours}
        assert scored(ours, theirs).p_value == 1
        first, second = (next(iter(factors(one).values())) for one in (ours, theirs))
        assert overlap(first, second).shared == pytest.approx(1)
        assert overlap(first, second).p_value == 1

    @pytest.mark.parametrize("noise", [0.0, 0.1])
    def test_a_copy_is_found(self, noise):
        score = scored(lora(1), turned(lora(1), 2, noise))
        assert score.p_value < 1e-6
        assert score.value > 0.9
        assert "6 of the victim's 6 low-rank updates" in Weights.explain(score.value, score.detail, None)

    def test_another_adapter_is_not(self):
        score = scored(lora(1), lora(2))
        assert score.p_value > 0.05
        assert "shares none" in Weights.explain(score.value, score.detail, None)

    def test_an_adapter_and_a_model_cannot_be_compared(self):
        model = {"w": np.random.default_rng(0).normal(size=(64, 64))}
        with pytest.raises(NotApplicable, match="it is a low-rank adapter"):
            scored(model, lora(1))
        with pytest.raises(NotApplicable, match="the victim is a low-rank adapter"):
            scored(lora(1), model)

    @pytest.mark.filterwarnings("error")
    def test_factors_that_are_no_numbers_match_nothing(self):
        for factor in (np.nan, 0.0):
            with pytest.raises(NotApplicable, match="no weight in common"):
                scored(lora(1), {name: value * factor for name, value in lora(1).items()})


def model(seed, shapes=((32, 24), (32, 32), (16, 32))):
    return {f"{i}.weight": drawn(seed + 7 * i, shape) for i, shape in enumerate(shapes)}


def moved(tensors, seed, far):
    return {name: value + far * drawn(seed + i, value.shape) for i, (name, value) in enumerate(tensors.items())}


BASE = model(0)
VICTIM = moved(BASE, 100, 0.1)


class TestBase:
    def test_siblings_have_a_common_ancestor(self):
        sibling = moved(BASE, 200, 0.1)
        assert scored(VICTIM, sibling).p_value < 1e-9
        score = scored(VICTIM, sibling, BASE)
        assert score.p_value > 0.05
        assert score.detail["related"]
        assert "in 0 of 3 changed matrices" in Weights.explain(score.value, score.detail, None)

    @pytest.mark.parametrize("longer", [1, 3])
    def test_siblings_that_the_same_task_pulled_the_same_way(self, longer):
        """Common changes of rank 2: the differences from the base have a cosine of about .8."""
        ours, theirs = moved(BASE, 1, 0.05), moved(BASE, 50, 0.05)
        for place, (name, value) in enumerate(BASE.items()):
            task = 0.1 * drawn(place, (len(value), 2)) @ drawn(place + 9, (2, value.shape[1]))
            ours[name], theirs[name] = ours[name] + task, value + longer * (theirs[name] + task - value)
        alike = [np.vdot(ours[n] - BASE[n], theirs[n] - BASE[n]) for n in BASE]
        sizes = [np.linalg.norm(ours[n] - BASE[n]) * np.linalg.norm(theirs[n] - BASE[n]) for n in BASE]
        assert 0.7 < np.median(np.array(alike) / sizes) < 0.95
        score = scored(ours, theirs, BASE)
        assert score.p_value > 0.05
        assert score.detail["related"]

    def test_a_child_is_derived(self):
        score = scored(VICTIM, moved(VICTIM, 200, 0.03), BASE)
        assert score.p_value < 1e-6
        assert "in 3 of 3 changed matrices" in Weights.explain(score.value, score.detail, None)

    def test_layers_that_the_victim_left_alone_say_nothing(self):
        ours = {**BASE, "2.weight": VICTIM["2.weight"]}
        score = scored(ours, {**moved(BASE, 5, 0.1), "2.weight": moved(VICTIM, 9, 0.02)["2.weight"]}, BASE)
        assert score.p_value < 1e-4
        assert score.detail["base"]["changed"] == 1

    def test_the_base_itself_is_no_child(self):
        score = scored(VICTIM, BASE, BASE)
        assert score.p_value == 1
        assert score.detail["related"]

    def test_strangers_stay_strangers(self):
        score = scored(VICTIM, model(999), BASE)
        assert score.p_value > 0.05
        assert "related" not in score.detail

    def test_a_copy_is_identical(self):
        assert scored(VICTIM, VICTIM, BASE).identical

    def test_another_order_is_not_judged(self):
        order = np.random.default_rng(0).permutation(32)
        theirs = dict(VICTIM)
        for name, axis in (("0.weight", 0), ("1.weight", 0), ("1.weight", 1), ("2.weight", 1)):
            theirs[name] = theirs[name].take(order, axis)
        score = scored(VICTIM, theirs, BASE)
        assert score.p_value is None
        assert "cannot be told" in Weights.explain(score.value, score.detail, None)

    @pytest.mark.parametrize(
        ("base", "match"), [(model(5), "has 0 of the victim's 3 matrices"), (VICTIM, "does not differ from the base")]
    )
    def test_what_is_no_base_is_refused(self, base, match):
        with pytest.raises(NotApplicable, match=match):
            scored(VICTIM, moved(VICTIM, 1, 0.1), base)

    @pytest.mark.parametrize("noise", [0.3, 1.0])
    def test_votes_by_a_loop(self, noise):
        rng = np.random.default_rng(3)
        base, change = rng.normal(size=(2, 12, 9))
        other = change + noise * rng.normal(size=change.shape)
        other[4] = 0

        def rest(difference):
            left, values, right = np.linalg.svd(difference)
            kept = next(k for k in range(1, 10) if np.square(values[:k]).sum() >= 0.9 * np.square(values).sum())
            return difference - sum(values[i] * np.outer(left[:, i], right[i]) for i in range(kept))

        votes = 0
        for row in set(range(12)) - {4}:
            pairs = ((other[row], rest(change)[row]), (change[row], rest(other)[row]))
            votes += all(whole @ part / (part @ part) >= 0.5 for whole, part in pairs)
        expected = sum(comb(11, k) for k in range(votes, 12)) / 2**11
        assert taken_over(base + change, base + other, base) == pytest.approx(expected)
        assert 0 < votes < 12
        assert taken_over(base + change, base, base) == 1


def test_pairs_of_independents_are_let_pass():
    p = [scored(model(a * 1000), model(b * 1000)).p_value for a, b in combinations(range(1, 7), 2)]
    assert min(p) > 0.05
