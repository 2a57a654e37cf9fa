"""Noise is one documented function: exact tests of its bits, then statistical tests of its laws."""

import itertools
import math
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import norm

from bounds import FALSE_ALARM, assert_binomial, assert_distribution, assert_normal_moments
from mcdrop.errors import SettingError
from mcdrop.randomness import bits, noise, words
from mcdrop.randomness.bits import pack_bits, unpack_bits
from mcdrop.randomness.noise import bernoulli, hash32, keep_mask, normal, threshold, uniform

# The definition in the docstring of mcdrop.randomness.noise, written down a second time, on Python integers.

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def out(state: int, index: int) -> int:
    return mix(state + (index + 1) * GAMMA & MASK)


def word(seed: int, site: int, block: int, coordinates: Sequence[int], row: int | None) -> int:
    total = out(out(out(seed, 0), site), block)
    total += sum(c * (out(0, axis) | 1) for axis, c in enumerate(coordinates))
    total += 0 if row is None else (row + 1) * GAMMA
    return mix(total & MASK)


def reference_hash(seed: int, site: int, t: int, coordinates: Sequence[int], row: int | None = None) -> int:
    both = word(seed, site, t // 2, coordinates, row)
    half = both & 2**32 - 1 if t % 2 else both >> 32
    return (half + 2**31) % 2**32


def test_the_finaliser_is_splitmix64():
    """Published outputs for the seeds 1234567 and 0."""
    assert [out(1234567, i) for i in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [out(0, i) for i in range(2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


HASHES = [[3920770623, 1781407791, 1046238602], [1765888688, 482538124, 2716281929]]
ROW_HASHES = [[2662234013, 4243383234], [1898722355, 2357093295]]
NORMALS = [
    [-1.1027551380821716, -1.7014931037735121, 1.975577368468015],
    [0.2435767440665248, 0.839868538987947, 0.38117861678564213],
]


def test_known_values():
    """Numbers of version 1, for good: a change of any is a new NOISE_VERSION."""
    assert noise.NOISE_VERSION == 1
    where = {"shape": (3,), "seed": 7, "site": 3, "passes": range(1, 3)}
    assert hash32(**where).tolist() == HASHES
    assert hash32(**where | {"shape": (2, 2), "row_axis": 0, "rows": range(5, 7)})[0].tolist() == ROW_HASHES
    assert (uniform(**where) * 2**24).tolist() == [[h >> 8 for h in row] for row in HASHES]
    torch.testing.assert_close(normal(**where, dtype=torch.float64), torch.tensor(NORMALS, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 1, 3), (2, 3, 2, 2, 1, 2)])
@pytest.mark.parametrize(
    ("seed", "site", "passes"),
    [
        (0, 0, range(5)),
        (2**64 - 1, 3, range(1, 2)),
        (-1, 3, range(1, 4)),
        (12345678901234567890123, -2, range(2**40 + 1, 2**40 + 5)),
    ],
)
def test_the_bits_are_those_of_the_definition(shape, seed, site, passes):
    expected = [[reference_hash(seed, site, t, c) for c in itertools.product(*map(range, shape))] for t in passes]
    found = hash32(shape=shape, seed=seed, site=site, passes=passes)
    assert found.shape == (len(passes), *shape)
    assert found.reshape(len(passes), -1).tolist() == expected


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("units", [1, 3])
def test_the_bits_of_rows_are_those_of_the_definition(axis, units):
    rows = [4, 0, -7, 2**33]
    shape = [2, 3, 2]
    shape[axis] = len(rows) * units
    for row_major in (True, False):
        found = hash32(
            shape=tuple(shape),
            seed=3,
            site=1,
            passes=range(1, 3),
            row_axis=axis,
            rows=torch.tensor(rows),
            units_per_row=units,
            row_major=row_major,
        )
        for index in itertools.product(*map(range, shape)):
            i = index[axis]
            r, unit = (i // units, i % units) if row_major else (i % len(rows), i // len(rows))
            coordinates = (*index[:axis], unit, *index[axis + 1 :])
            assert found[(0, *index)] == reference_hash(3, 1, 1, coordinates, rows[r])
            assert found[(1, *index)] == reference_hash(3, 1, 2, coordinates, rows[r])


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.float32, 24), (torch.float16, 11), (torch.bfloat16, 8), (torch.float64, 53)]
)
def test_uniforms_are_those_of_the_definition(dtype, bits):
    found = uniform(shape=(40,), seed=5, site=2, passes=range(3, 6), dtype=dtype)
    assert found.dtype == dtype
    for i, t in enumerate(range(3, 6)):
        for c in range(40):
            long = reference_hash(5, 2, t, (c,)) << 21 | word(5, 2, 2**63 + t, (c,), None) >> 43
            assert found[i, c].item() == (long >> 53 - bits) / 2**bits


def test_normals_are_those_of_the_definition():
    expected = [
        [ndtri(((word(5, 2, 2**63 + t, (c,), None) >> 12) + 0.5) / 2**52) for c in range(40)] for t in range(3, 6)
    ]
    double = normal(shape=(40,), seed=5, site=2, passes=range(3, 6), dtype=torch.float64)
    torch.testing.assert_close(double, torch.tensor(np.array(expected)), rtol=1e-12, atol=1e-14)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(normal(shape=(40,), seed=5, site=2, passes=range(3, 6), dtype=dtype), double.to(dtype))


@pytest.mark.parametrize("extreme", [0, -1])
def test_extreme_words_give_finite_normals_and_uniforms_below_one(monkeypatch, extreme):
    monkeypatch.setattr(words, "_mix_", lambda z, spare: z.fill_(extreme))
    where = {"shape": (3,), "seed": 0, "site": 0, "passes": range(2)}
    assert normal(**where).isfinite().all()
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        values = uniform(**where, dtype=dtype)
        assert ((values >= 0) & (values < 1)).all()


def test_a_unit_is_kept_from_the_threshold_on():
    where = {"shape": (50, 40), "seed": 1, "site": 2, "passes": range(3)}
    hashes = hash32(**where)
    edge = int(hashes[1, 3, 4])
    for p in (0.1, 0.5, 0.999, edge / 2**32, (edge + 1) / 2**32, 2**-32, 1 - 2**-32):
        assert torch.equal(keep_mask(p=p, **where), hashes >= round(p * 2**32))
    assert keep_mask(p=0, **where).all()
    assert not keep_mask(p=1, **where).any()


def test_thresholds_round_to_even_for_numbers_and_tensors():
    p = [0.0, 0.5 / 2**32, 1.5 / 2**32, 0.3, 0.5, 1 - 2**-33, 1.0]
    assert [threshold(value) for value in p] == [0, 0, 2, 1288490189, 2**31, 2**32, 2**32]
    assert threshold(torch.tensor(p, dtype=torch.float64)).tolist() == [threshold(value) for value in p]
    assert threshold(torch.tensor([-0.5, 1.5])).tolist() == [0, 2**32]


def test_a_mask_drawn_by_hand_has_the_bits_of_a_dropout():
    where = {"shape": (4, 500), "seed": 1, "site": 2, "passes": range(1, 4)}
    for p in (0.0, 0.1, 0.3, 0.5, 1.0):
        by_hand = bernoulli(torch.tensor(1 - p, dtype=torch.float64), **where)
        assert torch.equal(by_hand, keep_mask(p=p, **where))
        assert torch.equal(uniform(**where, dtype=torch.float64) >= p, keep_mask(p=p, **where))


def test_each_element_may_have_its_own_probability():
    probs = torch.rand((2, 1, 30), generator=torch.Generator().manual_seed(0))
    found = bernoulli(probs, shape=(5, 30), seed=3, site=0, passes=range(2))
    for t, i, j in itertools.product(range(2), range(5), range(30)):
        single = keep_mask(p=1 - probs[t, 0, j].item(), shape=(5, 30), seed=3, site=0, passes=range(2))
        assert found[t, i, j] == single[t, i, j]


# A draw does not depend on how it is cut up.

DRAWS = [
    pytest.param(lambda **where: keep_mask(p=0.4, **where), id="keep_mask"),
    pytest.param(hash32, id="hash32"),
    pytest.param(uniform, id="uniform"),
    pytest.param(lambda **where: uniform(dtype=torch.float64, **where), id="uniform-float64"),
    pytest.param(normal, id="normal"),
]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("chunk", [1, 2, 7, 20])
def test_chunks_of_passes_are_pieces_of_the_whole(draw, chunk):
    whole = draw(shape=(3, 5), seed=1, site=4, passes=range(20))
    pieces = [
        draw(shape=(3, 5), seed=1, site=4, passes=range(start, min(20, start + chunk))) for start in range(0, 20, chunk)
    ]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_longer_padding_keeps_the_earlier_units(draw, axis):
    shape = [3, 4, 5]
    short = draw(shape=tuple(shape), seed=1, site=4, passes=range(1, 4))
    shape[axis] += 6
    padded = draw(shape=tuple(shape), seed=1, site=4, passes=range(1, 4))
    assert torch.equal(padded[:, :3, :4, :5], short)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("row_major", [True, False])
def test_a_row_has_its_draw_wherever_it_stands(draw, axis, row_major):
    def rows_of(rows):
        shape = [6, 6]
        shape[axis] = 2 * len(rows)
        return draw(
            shape=tuple(shape),
            seed=1,
            site=4,
            passes=range(3),
            row_axis=axis,
            rows=rows,
            units_per_row=2,
            row_major=row_major,
        ).unflatten(axis + 1, (len(rows), 2) if row_major else (2, len(rows)))

    row_dim = axis + 1 if row_major else axis + 2
    whole = rows_of(range(10))
    chosen = torch.tensor([7, 2, 9, 2])
    assert torch.equal(rows_of(chosen), whole.index_select(row_dim, chosen))
    assert torch.equal(rows_of(range(3, 8)), whole.narrow(row_dim, 3, 5))


@pytest.mark.parametrize("draw", DRAWS)
def test_a_shared_draw_has_no_row_coordinate(draw):
    where = {"seed": 1, "site": 4, "passes": range(3)}
    assert torch.equal(draw(shape=(1, 9), row_axis=0, **where), draw(shape=(1, 9), **where))
    assert torch.equal(draw(shape=(4, 9), row_axis=0, units_per_row=4, **where), draw(shape=(4, 9), **where))


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("block", [1, 2, 7, 64, 500])
def test_the_size_of_blocks_does_not_show(draw, block, monkeypatch):
    shapes = [(), (1,), (40,), (40, 1), (3, 40), (2, 40, 3), (2, 3, 4, 5), (1, 70, 1, 2)]
    where = {"seed": 1, "site": 4, "passes": range(1, 10)}
    whole = [draw(shape=shape, **where) for shape in shapes]
    monkeypatch.setattr(words, "_BLOCK_PER_THREAD", block)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for shape, expected in zip(shapes, whole, strict=True):
        assert torch.equal(draw(shape=shape, **where), expected)


@pytest.mark.parametrize("draw", DRAWS)
def test_empty_draws_have_their_shape_and_dtype(draw):
    dtype = draw(shape=(1,), seed=0, site=0, passes=range(1)).dtype
    for shape, passes in (((0,), range(3)), ((4, 0, 2), range(1, 3)), ((2, 3), range(5, 5)), ((), range(0))):
        empty = draw(shape=shape, seed=0, site=0, passes=passes)
        assert empty.shape == (len(passes), *shape)
        assert empty.dtype == dtype
    assert draw(shape=(0, 3), seed=0, site=0, passes=range(2), row_axis=0, rows=range(0)).shape == (2, 0, 3)


def test_threads_give_what_each_gives_alone():
    def draw(seed):
        mask = keep_mask(p=0.3, shape=(100, 400), seed=seed, site=0, passes=range(20))
        return unpack_bits(pack_bits(mask), shape=(100, 400), scale=1 + seed)

    alone = [draw(seed) for seed in range(8)]
    bits._byte_table.cache_clear()
    together: list[torch.Tensor | None] = [None] * 8
    barrier = threading.Barrier(8)

    def work(seed):
        barrier.wait()
        together[seed] = draw(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    normal(shape=(3,), seed=0, site=0, passes=range(2))
    keep_mask(p=0.5, shape=(3,), seed=0, site=0, passes=range(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("draw", DRAWS)
def test_a_gpu_has_the_bits_of_the_cpu(draw):
    where = {"shape": (12, 33, 7), "seed": -5, "site": 4, "passes": range(1, 8), "row_axis": 0, "units_per_row": 3}
    cpu = draw(rows=range(4), **where)
    gpu = draw(rows=range(4), device="cuda", **where)
    assert gpu.device.type == "cuda"
    tolerance = 1e-6 if draw is normal else 0  # erfinv may round differently
    torch.testing.assert_close(gpu.cpu(), cpu, rtol=tolerance, atol=tolerance)


# Bits


@given(st.integers(0, 4), st.lists(st.integers(0, 5), max_size=3), st.integers(0, 2**32))
def test_packed_masks_unpack_to_themselves(passes, sizes, seed):
    shape = tuple(sizes)
    mask = keep_mask(p=0.5, shape=shape, seed=seed, site=0, passes=range(passes))
    bits = pack_bits(mask)
    assert bits.shape == (passes, math.ceil(math.prod(shape) / 8))
    assert torch.equal(unpack_bits(bits, shape=shape, dtype=torch.bool), mask)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        scaled = unpack_bits(bits, shape=shape, scale=1 / 0.7, dtype=dtype)
        assert scaled.shape == mask.shape
        assert torch.equal(scaled, mask.to(dtype) * torch.tensor(1 / 0.7, dtype=dtype))


def test_units_are_packed_from_the_least_bit_up():
    mask = torch.zeros((2, 11), dtype=torch.bool)
    mask[0, 0] = mask[0, 3] = mask[0, 10] = mask[1, 7] = True
    assert pack_bits(mask).tolist() == [[1 + 8, 4], [128, 0]]


def test_masks_that_are_views_pack_like_copies():
    mask = keep_mask(p=0.5, shape=(200,), seed=0, site=0, passes=range(4))
    flat = mask.flatten()[3:67]
    for view in (mask[1:, 3:19], mask.t(), mask[:, ::2], flat.view(2, 32), flat.view(1, 8, 8)):
        assert torch.equal(pack_bits(view), pack_bits(view.clone(memory_format=torch.contiguous_format)))


# Errors


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_a_rate_must_be_a_probability(p):
    with pytest.raises(SettingError, match=r"p = .* is not a probability"):
        keep_mask(p=p, shape=(2,), seed=0, site=0, passes=range(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"passes": range(0, 4, 2)}, r"passes = range\(0, 4, 2\); expected a range that counts up by one"),
        ({"passes": range(-1, 4)}, r"passes = range\(-1, 4\)"),
        ({"row_axis": 2}, r"row_axis = 2 is not an axis of shape \(6, 4\)"),
        ({"rows": range(6)}, "name it with row_axis"),
        ({"units_per_row": 2}, "name it with row_axis"),
        ({"row_axis": 0}, "axis 0 .* has 6 units; expected 1 for one row, which all rows share"),
        ({"row_axis": 0, "rows": range(5)}, "has 6 units; expected 1 for each of 5 rows"),
        ({"row_axis": 0, "rows": range(6), "units_per_row": 2}, "expected 2 for each of 6 rows"),
    ],
)
def test_arguments_must_fit_together(arguments, message):
    with pytest.raises(SettingError, match=message):
        hash32(**{"shape": (6, 4), "seed": 0, "site": 0, "passes": range(2)} | arguments)


def test_random_numbers_are_floating():
    for draw in (uniform, normal):
        with pytest.raises(SettingError, match=r"torch.int64 are not defined; expected one of float64, float32"):
            draw(shape=(2,), seed=0, site=0, passes=range(2), dtype=torch.int64)


def test_bits_must_fit_their_shape():
    with pytest.raises(SettingError, match=r"1 bytes per pass cannot hold a mask of shape \(3, 3\); expected 2"):
        unpack_bits(torch.zeros((2, 1), dtype=torch.uint8), shape=(3, 3))


# Laws. Every test below fails right code at most once in a million runs.


@pytest.mark.parametrize("p", [0.001, 0.1, 0.3, 0.5, 0.9])
def test_drops_units_at_rate_p(p):
    """Of 500,000 units. A true rate wrong by 7.5 standard errors (1.6 % of 0.3; 34 % of 0.001) passes once in 100."""
    kept = keep_mask(p=p, shape=(100_000,), seed=0, site=0, passes=range(5))
    assert_binomial(int((~kept).sum()), n=500_000, p=p, false_alarm=FALSE_ALARM / 5)


HASH = {"shape": (256, 512), "seed": 11, "site": 2, "passes": range(2), "row_axis": 0, "rows": range(256)}
BELOW = torch.tril_indices(256, 256, offset=-1)
NEIGHBOURS = {
    "halves of a word": lambda h: (h[0], h[1]),
    "next word": lambda h: (h, moved(passes=range(2, 4))),
    "far pass": lambda h: (h, moved(passes=range(2**32, 2**32 + 2))),
    "site": lambda h: (h, moved(site=3)),
    "seed": lambda h: (h, moved(seed=12)),
    "seed and site, one step of the generator": lambda h: (h, moved(seed=11 - GAMMA, site=3)),
    "opposite seed": lambda h: (h, moved(seed=-11)),
    "row": lambda h: (h[:, :-1], h[:, 1:]),
    "unit": lambda h: (h[:, :, :-1], h[:, :, 1:]),
    "unit, eight on": lambda h: (h[:, :, :-8], h[:, :, 8:]),
    "diagonal": lambda h: (h[:, :-1, :-1], h[:, 1:, 1:]),
    "other diagonal": lambda h: (h[:, :-1, 1:], h[:, 1:, :-1]),
    "axes swapped": lambda h: (h[:, BELOW[0], BELOW[1]], h[:, BELOW[1], BELOW[0]]),
    "units instead of rows": lambda h: (h, moved(row_axis=None, rows=None)),
    "next bit": lambda h: (h, h >> 1 | 2**31 * (h & 1)),
}


def moved(**changes):
    return hash32(**HASH | changes)


@pytest.mark.parametrize("relation", NEIGHBOURS)
def test_neighbours_agree_by_chance_only(relation):
    """Each bit of hash32 equals its neighbour's in half of at least 65,280 independent comparisons.

    A correlation of 3.3 % between any two (1.7 % where 262,144 are compared) passes at most once in a hundred.
    """
    one, other = NEIGHBOURS[relation](hash32(**HASH))
    differ = one ^ other
    for bit in range(32):
        assert_binomial(
            int((differ >> bit & 1).sum()), n=differ.numel(), p=0.5, false_alarm=FALSE_ALARM / (32 * len(NEIGHBOURS))
        )


def test_pairs_of_masks_agree_by_chance_only():
    """At p = 0.3 two masks agree in 0.58 of 100,000 units; 0.58 +- 0.013 passes once in a hundred.

    Twelve masks: all pairs of passes 0 to 3 of the sites 0 and 1 and of another seed's site 0.
    """
    masks = [
        mask
        for seed, site in ((0, 0), (0, 1), (1, 0))
        for mask in keep_mask(p=0.3, shape=(100, 1000), seed=seed, site=site, passes=range(4))
    ]
    pairs = list(itertools.combinations(masks, 2))
    for one, other in pairs:
        assert_binomial(int((one == other).sum()), n=100_000, p=0.58, false_alarm=FALSE_ALARM / len(pairs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms_are_uniform(dtype):
    """A distribution function off by 0.009 anywhere passes less than once in a hundred of 200,000 numbers."""
    values = uniform(shape=(50, 1000), seed=3, site=1, passes=range(4), dtype=dtype)
    assert_distribution(values.numpy(), lambda x: x.clip(0, 1), false_alarm=FALSE_ALARM / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_uniforms_fill_their_eighths_equally(dtype):
    """A probability of 0.125 +- 0.006 in any eighth passes less than once in a hundred of 200,000 numbers."""
    values = uniform(shape=(50, 1000), seed=3, site=1, passes=range(4), dtype=dtype)
    for count in (values.double() * 8).floor().long().flatten().bincount(minlength=8).tolist():
        assert_binomial(count, n=200_000, p=1 / 8, false_alarm=FALSE_ALARM / 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_are_normal(dtype):
    """Of 200,000: a mean off by 0.02, a variance off by 3 % or tails beyond 3 off by 50 % pass once in a hundred."""
    values = normal(shape=(50, 1000), seed=3, site=1, passes=range(4), dtype=dtype).numpy()
    assert_normal_moments(values, false_alarm=FALSE_ALARM / 8)
    assert_distribution(values, norm.cdf, false_alarm=FALSE_ALARM / 8)
    for tail in ((values > 3).sum(), (values < -3).sum()):
        assert_binomial(int(tail), n=200_000, p=norm.sf(3), false_alarm=FALSE_ALARM / 8)


def test_normals_of_neighbours_are_uncorrelated():
    """Sums and differences of standard normals have variance 2; a correlation of 5 % passes once in a hundred."""
    values = normal(shape=(100, 1000), seed=3, site=1, passes=range(2), dtype=torch.float64)
    pairs = [(values[0], values[1]), (values[0, ::2], values[0, 1::2]), (values[0, :, ::2], values[0, :, 1::2])]
    for (one, other), sign in itertools.product(pairs, (1, -1)):
        assert_normal_moments((one + sign * other).numpy(), std=math.sqrt(2), false_alarm=FALSE_ALARM / 6)
