"""The embedded jets against physics and definitions, and the tool that makes them."""

import importlib.util
import math
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent.parent
TOOL = ROOT / "tools" / "make_jets.py"
JETS = ROOT / "labkit" / "data" / "assets" / "jets.npz"
G, Q, W, Z, T = range(5)

Columns = dict[str, NDArray[np.float64]]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """`tools/make_jets.py`, which must import without Pythia and FastJet."""
    spec = importlib.util.spec_from_file_location("make_jets", TOOL)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def jets() -> dict[str, NDArray]:
    with np.load(JETS, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def columns(jets: dict[str, NDArray]) -> Columns:
    """Features by name, shape (n,) each."""
    return dict(zip(jets["features"].tolist(), jets["x"].T.astype(np.float64), strict=True))


def medians(column: NDArray, labels: NDArray) -> list[float]:
    return [float(np.median(column[labels == label])) for label in range(5)]


# The shipped file


def test_shape_and_types(jets: dict[str, NDArray]) -> None:
    x, y = jets["x"], jets["y"]
    assert x.dtype == np.float32
    assert y.dtype == np.uint8
    assert x.shape == (len(y), 16)
    assert len(y) >= 200_000
    assert np.isfinite(x).all()
    assert JETS.stat().st_size < 20e6


def test_names(jets: dict[str, NDArray], tool: ModuleType) -> None:
    assert jets["classes"].tolist() == ["g", "q", "w", "z", "t"] == list(tool.CLASSES)
    assert jets["features"].tolist() == [
        *("zlogz", "c1_b0_mmdt", "c1_b1_mmdt", "c1_b2_mmdt", "c2_b1_mmdt", "c2_b2_mmdt"),
        *("d2_b1_mmdt", "d2_b2_mmdt", "d2_a1_b1_mmdt", "d2_a1_b2_mmdt"),
        *("m2_b1_mmdt", "m2_b2_mmdt", "n2_b1_mmdt", "n2_b2_mmdt", "mass_mmdt", "multiplicity"),
    ]
    assert jets["features"].tolist() == list(tool.FEATURES)


def test_classes_are_balanced_and_shuffled(jets: dict[str, NDArray]) -> None:
    counts = np.bincount(jets["y"], minlength=5)
    assert (counts == counts[0]).all()
    # In a shuffled file the first tenth holds a fifth of each class, within 6 binomial sigma.
    start = jets["y"][: len(jets["y"]) // 10]
    shares = np.bincount(start, minlength=5) / len(start)
    assert np.abs(shares - 0.2).max() < 6 * math.sqrt(0.2 * 0.8 / len(start))


def test_no_jet_is_there_twice(jets: dict[str, NDArray]) -> None:
    assert len(np.unique(jets["x"], axis=0)) == len(jets["x"])


# Physics: the particles that the jets come from


def test_groomed_mass_peaks(columns: Columns, jets: dict[str, NDArray]) -> None:
    mass = medians(columns["mass_mmdt"], jets["y"])
    # Neutrinos and radiation out of the cone lower the mass; top jets have b decays as well.
    assert mass[W] == pytest.approx(80.4, abs=2)
    assert mass[Z] == pytest.approx(91.2, abs=2)
    assert mass[T] == pytest.approx(173, abs=10)
    assert mass[Q] < 30 < mass[G] < 75  # no particle there: set by radiation, stronger for gluons


def test_w_and_z_masses_are_resolved(columns: Columns, jets: dict[str, NDArray]) -> None:
    mass = columns["mass_mmdt"]
    for label, nominal in ((W, 80.4), (Z, 91.2)):
        ours = mass[jets["y"] == label]
        # An isotropic decay loses its softer quark to z_cut = 0.1 in a fifth of the cases.
        assert 0.65 < np.mean(np.abs(ours - nominal) < 10) < 0.85
        assert np.mean(ours < 50) < 0.25


def test_gluons_radiate_more_than_quarks(columns: Columns, jets: dict[str, NDArray]) -> None:
    count = medians(columns["multiplicity"], jets["y"])
    # Colour factors say 9/4 at infinite energy; at 1 TeV simulations and data have about 1.6.
    assert 1.3 < count[G] / count[Q] < 9 / 4
    entropy = medians(-columns["zlogz"], jets["y"])
    assert entropy[G] > entropy[Q]


def test_two_prongs_against_one(columns: Columns, jets: dict[str, NDArray]) -> None:
    for name in ("d2_b2_mmdt", "n2_b1_mmdt"):  # made to be small for two-prong jets
        value = medians(columns[name], jets["y"])
        assert max(value[W], value[Z]) < min(value[G], value[Q])


def test_mass_agrees_with_correlator(columns: Columns) -> None:
    # Narrow jets of light particles have m² = Σ_{i<j} pT_i pT_j θ_ij² = pT² e2(2), so that
    # m / sqrt(e2) is the groomed pT: close to 1 TeV and below the upper edge of the pT window.
    pt = columns["mass_mmdt"] / np.sqrt(columns["c1_b2_mmdt"])
    heavy = columns["mass_mmdt"] > 20  # hadron masses matter for lighter jets
    assert np.median(pt[heavy]) == pytest.approx(1000, rel=0.05)
    assert np.quantile(pt[heavy], 0.001) > 600
    assert np.quantile(pt[heavy], 0.999) < 1650


# Bounds that follow from the definitions, for every jet


def test_multiplicity_is_a_count(columns: Columns) -> None:
    count = columns["multiplicity"]
    assert (count == np.round(count)).all()
    assert count.min() >= 3


def test_entropy_bound(columns: Columns) -> None:
    zlogz = columns["zlogz"]
    assert (zlogz < 0).all()
    assert (zlogz > -np.log(columns["multiplicity"])).all()  # attained when all z are equal


def test_correlator_bounds(columns: Columns) -> None:
    c0, c1, c2 = (columns[f"c1_b{beta}_mmdt"] for beta in (0, 1, 2))
    assert (c0 > 0).all()
    assert (c0 <= (1 - 1 / columns["multiplicity"]) / 2).all()  # (1 - Σ z²) / 2
    assert (c1**2 <= c0 * c2 * (1 + 1e-5)).all()  # Cauchy-Schwarz with weights z_i z_j
    assert c1.max() < 2 * 0.8 / 2  # angles are below the jet's diameter


@pytest.mark.parametrize("beta", [1, 2])
def test_ratio_bounds(columns: Columns, beta: int) -> None:
    c2, d2, m2, n2 = (columns[f"{name}_b{beta}_mmdt"] for name in ("c2", "d2", "m2", "n2"))
    for ratio in (c2, d2, m2, n2):
        assert (ratio > 0).all()
    # The smallest angle of a triple is below the mean of the three: 1e3 ≤ e2 / 3.
    assert (m2 < 1 / 3).all()
    # e3 has the third angle to the power β on top of 2e3; no angle exceeds two radii by much.
    assert (c2 < n2 * 2**beta).all()


def test_ratios_agree_with_each_other(columns: Columns) -> None:
    e2_1, e2_2 = columns["c1_b1_mmdt"], columns["c1_b2_mmdt"]
    e3_1, e3_2 = columns["c2_b1_mmdt"] * e2_1**2, columns["c2_b2_mmdt"] * e2_2**2
    expected = {
        "d2_b1_mmdt": e3_1 / e2_1**3,
        "d2_b2_mmdt": e3_2 / e2_2**3,
        "d2_a1_b1_mmdt": e3_1 / e2_1**3,
        "d2_a1_b2_mmdt": e3_1 / e2_2**1.5,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(columns[name], value, rtol=1e-5, err_msg=name)


# The feature functions, against loops written from the definitions


def literal_features(
    jet: list[tuple[float, float, float]], groomed: list[tuple[float, float, float]], mass: float
) -> list[float]:
    """The 16 features, for constituents given as (pT, rapidity, azimuth)."""

    def angle(p: tuple[float, float, float], q: tuple[float, float, float]) -> float:
        # atan2 folds the azimuth difference into (-π, π].
        dphi = math.atan2(math.sin(p[2] - q[2]), math.cos(p[2] - q[2]))
        return math.sqrt((p[1] - q[1]) ** 2 + dphi**2)

    total = sum(p[0] for p in groomed)

    def e2(beta: float) -> float:
        return sum(
            p[0] / total * q[0] / total * angle(p, q) ** beta for p, q in combinations(groomed, 2)
        )

    def e3(beta: float, angles: int) -> float:
        """With the product of the so many smallest angles of each triple."""
        result = 0.0
        for p, q, r in combinations(groomed, 3):
            ordered = sorted([angle(p, q), angle(p, r), angle(q, r)])
            weight = p[0] / total * q[0] / total * r[0] / total
            result += weight * math.prod(ordered[:angles]) ** beta
        return result

    jet_total = sum(p[0] for p in jet)
    return [
        sum(p[0] / jet_total * math.log(p[0] / jet_total) for p in jet),
        *(e2(beta) for beta in (0, 1, 2)),
        *(e3(beta, 3) / e2(beta) ** 2 for beta in (1, 2)),
        *(e3(beta, 3) / e2(beta) ** 3 for beta in (1, 2)),
        *(e3(1, 3) / e2(beta) ** (3 * 1 / beta) for beta in (1, 2)),
        *(e3(beta, 1) / e2(beta) for beta in (1, 2)),
        *(e3(beta, 2) / e2(beta) ** 2 for beta in (1, 2)),
        mass,
        len(jet),
    ]


@pytest.mark.parametrize("groomed_count", [3, 4, 5, 16, 17, 33])
def test_features_agree_with_loops(tool: ModuleType, groomed_count: int) -> None:
    rng = np.random.default_rng(groomed_count)
    count = groomed_count + 7
    pt = rng.exponential(size=count) + 1e-3
    rapidity = rng.normal(scale=0.3, size=count)
    phi = rng.normal(scale=0.3, size=count) % (2 * np.pi)  # around 0, where azimuth wraps
    jet = tool.Constituents(pt, rapidity, phi)
    groomed = tool.Constituents(*(column[:groomed_count] for column in jet))
    np.testing.assert_allclose(
        tool.jet_features(jet, groomed, 91.2),
        literal_features(list(zip(*jet, strict=True)), list(zip(*groomed, strict=True)), mass=91.2),
        rtol=1e-10,
    )


def test_features_of_an_equilateral_triangle(tool: ModuleType) -> None:
    # Three equal momenta at mutual distance θ, by hand: e2 = θ^β / 3, e3 = θ^3β / 27.
    theta = 0.3
    corners = np.array([[0.0, 0.0], [theta, 0.0], [theta / 2, theta * math.sqrt(3) / 2]])
    jet = tool.Constituents(np.full(3, 50.0), *corners.T)
    c1 = [1 / 3, theta / 3, theta**2 / 3]
    c2, d2, d2_a1 = [theta / 3, theta**2 / 3], [1, 1], [1, 27**0.5 / 27]
    m2, n2 = [1 / 9, 1 / 9], [1 / 3, 1 / 3]
    expected = [-math.log(3), *c1, *c2, *d2, *d2_a1, *m2, *n2, 10.0, 3]
    np.testing.assert_allclose(tool.jet_features(jet, jet, 10.0), expected, rtol=1e-12)


# The generator


def generate(path: Path, *options: str) -> bytes:
    command = [sys.executable, str(TOOL), "--per-class", "4", "--out", str(path), *options]
    subprocess.run(command, check=True, capture_output=True)
    return path.read_bytes()


@pytest.mark.slow
def test_same_seed_same_file(tmp_path: Path) -> None:
    pytest.importorskip("pythia8mc")
    pytest.importorskip("fastjet")
    one = generate(tmp_path / "one.npz", "--seed", "3", "--processes", "1")
    two = generate(tmp_path / "two.npz", "--seed", "3", "--processes", "2")
    other = generate(tmp_path / "other.npz", "--seed", "4", "--processes", "2")
    assert one == two
    assert one != other
    with np.load(tmp_path / "one.npz", allow_pickle=False) as file:
        assert file["x"].shape == (20, 16)
        assert np.bincount(file["y"]).tolist() == [4] * 5


def test_grooming_drops_soft_wide_radiation(tool: ModuleType) -> None:
    fastjet = pytest.importorskip("fastjet")

    def particle(pt: float, rapidity: float) -> object:
        return fastjet.PtYPhiM(pt, rapidity, 0.0, 0.0)

    hard, balanced, soft = particle(100, 0.0), particle(20, 0.1), particle(5, 0.6)
    kept, mass = tool.groom([hard, soft, balanced])
    assert sorted(p.pt() for p in kept) == pytest.approx([20, 100])
    # Massless particles: m² = 2 pT1 pT2 (cosh Δy - cos Δφ).
    assert mass == pytest.approx(math.sqrt(2 * 100 * 20 * (math.cosh(0.1) - 1)))
