"""Generate the jet-substructure data set with Pythia 8 and FastJet.

    pip install "pythia8mc==8.317.2" "fastjet==3.5.2.0"
    python tools/make_jets.py --per-class 40000 --seed 1 --out labkit/data/assets/jets.npz

Sample, after arXiv:1709.08705: proton-proton collisions at 13 TeV with a gluon pair, a light-quark
pair, WW, ZZ or a top pair in the final state, each parton with a transverse momentum close to
1 TeV; W, Z and top decay to quarks. One row is one jet, described by the 16 features of
arXiv:1804.06913.

The published sample was generated in two steps: MadGraph made the undecayed hard process, Pythia
decayed and showered it. The same is done here with two Pythia instances, because the split matters.
In one step Pythia would correlate the W and Z decays with their production: such bosons are mostly
transverse and decay unevenly, grooming then drops the softer quark, and the jet looks like that of
a single quark. Across the Les Houches interface the spin is forgotten and the decay is isotropic.

Lengths of constituent arrays are written n (all particles of a jet) and g (those that grooming
keeps). Momenta and masses are in GeV, angles are ΔR = sqrt(Δy² + Δφ²) in rapidity and azimuth.
"""

import argparse
import importlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

Array = NDArray[np.float64]

FEATURES = (
    "zlogz",
    "c1_b0_mmdt",
    "c1_b1_mmdt",
    "c1_b2_mmdt",
    "c2_b1_mmdt",
    "c2_b2_mmdt",
    "d2_b1_mmdt",
    "d2_b2_mmdt",
    "d2_a1_b1_mmdt",
    "d2_a1_b2_mmdt",
    "m2_b1_mmdt",
    "m2_b2_mmdt",
    "n2_b1_mmdt",
    "n2_b2_mmdt",
    "mass_mmdt",
    "multiplicity",
)

PROCESSES = {
    "g": ("HardQCD:gg2gg = on", "HardQCD:qqbar2gg = on"),
    "q": ("HardQCD:qq2qq = on", "HardQCD:gg2qqbar = on", "HardQCD:qqbar2qqbarNew = on"),
    "w": ("WeakDoubleBoson:ffbar2WW = on",),
    "z": ("WeakDoubleBoson:ffbar2gmZgmZ = on", "WeakZ0:gmZmode = 2"),  # 2: no photon
    "t": ("Top:gg2ttbar = on", "Top:qqbar2ttbar = on"),
}
CLASSES = tuple(PROCESSES)
"""Class names; the label of a jet is the index of its class here."""

HEAVY_QUARKS = {4, 5}
"""Charm and bottom (PDG codes): qq2qq takes them from the proton; they are not "light quarks"."""

BEAM_ENERGY = 6500.0
HARD_PROCESS = (
    f"Beams:eCM = {2 * BEAM_ENERGY}",
    "PhaseSpace:pTHatMin = 995",
    "PhaseSpace:pTHatMax = 1005",
    "PhaseSpace:useBreitWigners = off",  # on shell, as undecayed bosons are in MadGraph
    "ProcessLevel:resonanceDecays = off",
    "PartonLevel:all = off",
)
DECAY_AND_SHOWER = (
    "Beams:frameType = 5",  # events come from an LHAup object
    "23:onMode = off",
    "23:onIfAny = 1 2 3 4 5",
    "24:onMode = off",
    "24:onIfAny = 1 2 3 4 5",
)

JET_RADIUS = 0.8
JET_PT_WINDOW = (800.0, 1600.0)
"""Jets kept. Shower recoil and out-of-cone radiation widen the partons' window of 1%."""
MIN_JET_PT = 200.0
"""Softer jets are not looked at when a parton's nearest jet is sought."""
MATCH_RADIUS = JET_RADIUS / 2
"""Largest ΔR between a hard parton and its jet."""
Z_CUT = 0.1
MIN_GROOMED = 3
"""Three-point correlators, and ratios with them, need three particles."""

MAX_PYTHIA_SEED = 900_000_000

CHUNK = 1000
"""Jets that one task makes. It fixes the random numbers, so changing it changes the data."""


class Constituents(NamedTuple):
    """Particles of a jet: transverse momenta, rapidities and azimuths, each of shape (n,)."""

    pt: Array
    rapidity: Array
    phi: Array


class Correlators(NamedTuple):
    """Energy correlators of one jet at one angular exponent β (arXiv:1609.07483).

    With z_i = pT_i / Σ pT and a ≤ b ≤ c the three angles of a triple:

    e2:     Σ_{i<j} z_i z_j θ_ij^β
    e3:     Σ_{i<j<k} z_i z_j z_k (a b c)^β
    e3_one: Σ_{i<j<k} z_i z_j z_k a^β, written 1e3 in the literature
    e3_two: Σ_{i<j<k} z_i z_j z_k (a b)^β, written 2e3
    """

    e2: float
    e3: float
    e3_one: float
    e3_two: float


def fractions(pt: Array) -> Array:
    """Momentum fractions z_i = pT_i / Σ pT, shape (n,)."""
    return pt / pt.sum()


@cache
def _pairs(limit: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Index arrays i < j of all pairs below limit, ordered by j, then i.

    Pair (i, j) is at position j(j-1)/2 + i, so the pairs of n particles are the first n(n-1)/2.
    """
    j, i = np.tril_indices(limit, -1)
    return i, j


@cache
def _triples(limit: int) -> tuple[NDArray[np.intp], ...]:
    """Positions of the pairs (i, j), (i, k), (j, k), and k, of all triples i < j < k below limit.

    Ordered by k, then j, then i: the triples of n particles are the first n(n-1)(n-2)/6.
    """
    r = np.arange(limit)
    k, j, i = np.nonzero((r[:, None, None] > r[:, None]) & (r[:, None] > r))
    return j * (j - 1) // 2 + i, k * (k - 1) // 2 + i, k * (k - 1) // 2 + j, k


def correlators(particles: Constituents, betas: tuple[float, ...]) -> list[Correlators]:
    """Energy correlators of a jet for each exponent in betas."""
    z = fractions(particles.pt)
    n = len(z)
    limit = 1 << (n - 1).bit_length()  # powers of two: few index tables serve all jets
    i, j = (index[: math.comb(n, 2)] for index in _pairs(limit))
    ij, ik, jk, k = (index[: math.comb(n, 3)] for index in _triples(limit))

    dphi = np.abs(particles.phi[i] - particles.phi[j])
    theta = np.hypot(
        particles.rapidity[i] - particles.rapidity[j], np.minimum(dphi, 2 * np.pi - dphi)
    )
    zz = z[i] * z[j]
    zzz = zz[ij] * z[k]
    a, b, c = theta[ij], theta[ik], theta[jk]
    smallest = np.minimum(np.minimum(a, b), c)
    two_smallest = np.minimum(np.minimum(a * b, a * c), b * c)
    product = a * b * c
    # np.sum, not @: on this many numbers BLAS starts threads, which fight with the processes.
    return [
        Correlators(
            e2=float(np.sum(zz * theta**beta)),
            e3=float(np.sum(zzz * product**beta)),
            e3_one=float(np.sum(zzz * smallest**beta)),
            e3_two=float(np.sum(zzz * two_smallest**beta)),
        )
        for beta in betas
    ]


def jet_features(jet: Constituents, groomed: Constituents, groomed_mass: float) -> Array:
    """The 16 features of a jet in the order of FEATURES (arXiv:1804.06913, table 1).

    Args:
        jet: all n constituents.
        groomed: the g >= 3 constituents that grooming keeps.
        groomed_mass: invariant mass of the groomed jet.

    Returns:
        Array of shape (16,). D2(α, β) = e3(α) / e2(β)^(3α/β), so at α = β = 1 it is D2(1): the
        published feature list holds this number twice.
    """
    z_jet, z = fractions(jet.pt), fractions(groomed.pt)
    one, two = correlators(groomed, (1.0, 2.0))
    return np.array(
        [
            z_jet @ np.log(z_jet),
            (1 - z @ z) / 2,  # e2 at β = 0 needs no angles: Σ_{i<j} z_i z_j with Σ z = 1
            one.e2,
            two.e2,
            one.e3 / one.e2**2,
            two.e3 / two.e2**2,
            one.e3 / one.e2**3,
            two.e3 / two.e2**3,
            one.e3 / one.e2**3,
            one.e3 / two.e2**1.5,
            one.e3_one / one.e2,
            two.e3_one / two.e2,
            one.e3_two / one.e2**2,
            two.e3_two / two.e2**2,
            groomed_mass,
            len(z_jet),
        ]
    )


def _pythia(settings: tuple[str, ...], seed: int) -> Any:
    """A silent Pythia, not yet initialised."""
    pythia = importlib.import_module("pythia8mc").Pythia("", False)
    for line in (*settings, "Print:quiet = on", "Random:setSeed = on", f"Random:seed = {seed}"):
        if not pythia.readString(line):
            raise ValueError(f"Pythia does not know the setting {line!r}")
    return pythia


def _les_houches(hard: Any) -> Any:
    """Les Houches source (hep-ph/0109068) of the undecayed events of a hard-process Pythia."""
    base: Any = importlib.import_module("pythia8mc").LHAup

    class LesHouches(base):
        def setInit(self) -> bool:  # noqa: N802
            self.setBeamA(2212, BEAM_ENERGY)
            self.setBeamB(2212, BEAM_ENERGY)
            self.setStrategy(3)  # unweighted events
            self.addProcess(1)
            return True

        def setEvent(self, process_id: int = 0) -> bool:  # noqa: N802
            while not hard.next() or not HEAVY_QUARKS.isdisjoint(
                abs(hard.process[line].id()) for line in (5, 6)
            ):
                pass
            self.setProcess(1, 1.0, hard.process.scale(), 0.0, 0.0)
            for line in (3, 4, 5, 6):  # two incoming partons, two outgoing
                p = hard.process[line]
                status, mother1, mother2 = (-1, 0, 0) if line < 5 else (1, 1, 2)
                colours = p.col(), p.acol()
                momentum = p.px(), p.py(), p.pz(), p.e(), p.m()
                self.addParticle(p.id(), status, mother1, mother2, *colours, *momentum)
            return True

    return LesHouches()


def events(name: str, seeds: tuple[int, int]) -> Iterator[Any]:
    """Endless fully simulated events of a class, as the Pythia that holds the current one.

    Args:
        name: one of CLASSES.
        seeds: of the hard process, and of decay, shower and hadronisation (1 to 900,000,000).
    """
    hard = _pythia(HARD_PROCESS + PROCESSES[name], seeds[0])
    pythia = _pythia(DECAY_AND_SHOWER, seeds[1])
    source = _les_houches(hard)
    pythia.setLHAupPtr(source)
    if not (hard.init() and pythia.init()):
        raise RuntimeError(f"Pythia could not be initialised for class {name!r}")
    while True:
        if pythia.next():
            yield pythia


def constituents(particles: list[Any]) -> Constituents:
    """Coordinates of FastJet PseudoJets."""
    return Constituents(*np.array([(p.pt(), p.rap(), p.phi()) for p in particles]).T)


def groom(particles: list[Any]) -> tuple[list[Any], float]:
    """Modified mass drop (mMDT, arXiv:1307.0007): soft drop with β = 0 on the C-A tree of a jet.

    Undoes the last clustering step and drops the softer branch, until the softer one has at
    least Z_CUT of the transverse momentum of the two.

    Returns:
        The particles that are left, and the mass of their sum.
    """
    fastjet = importlib.import_module("fastjet")
    definition = fastjet.JetDefinition(
        fastjet.cambridge_algorithm, fastjet.JetDefinition.max_allowable_R
    )
    cluster = fastjet.ClusterSequence(particles, definition)
    (groomed,) = cluster.inclusive_jets()
    branches = fastjet.PseudoJet(), fastjet.PseudoJet()
    while groomed.has_parents(*branches):
        soft, hard = sorted(branches, key=lambda branch: branch.pt())
        if soft.pt() >= Z_CUT * (soft.pt() + hard.pt()):
            break
        groomed = fastjet.PseudoJet(hard)
    return list(groomed.constituents()), groomed.m()


def event_jets(pythia: Any, counts: Counter[str]) -> Iterator[Array]:
    """Features, each of shape (16,), of the jets matched to the two hard partons of an event.

    Args:
        pythia: holds the event.
        counts: told the fate of each of the two partons.
    """
    fastjet = importlib.import_module("fastjet")
    visible = [
        fastjet.PseudoJet(p.px(), p.py(), p.pz(), p.e())
        for p in pythia.event
        if p.isFinal() and p.isVisible()
    ]
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, JET_RADIUS)
    cluster = fastjet.ClusterSequence(visible, definition)
    jets = list(cluster.inclusive_jets(MIN_JET_PT))
    for line in (5, 6):
        p = pythia.process[line]
        parton = fastjet.PseudoJet(p.px(), p.py(), p.pz(), p.e())
        jet = min(jets, key=parton.delta_R, default=None)
        if jet is None or parton.delta_R(jet) > MATCH_RADIUS:
            counts["unmatched"] += 1
            continue
        jets.remove(jet)  # the other parton cannot have it too
        if not JET_PT_WINDOW[0] < jet.pt() < JET_PT_WINDOW[1]:
            counts["outside the pT window"] += 1
            continue
        particles = list(jet.constituents())
        groomed, mass = groom(particles)
        if len(groomed) < MIN_GROOMED:
            counts["too few groomed"] += 1
            continue
        counts["kept"] += 1
        yield jet_features(constituents(particles), constituents(groomed), mass)


def make_chunk(label: int, index: int, size: int, seed: int) -> tuple[Array, Counter[str]]:
    """Jets of one class, shape (size, 16), that depend on nothing but the arguments.

    Args:
        label: class index.
        index: which chunk of its class; chunks have independent random numbers.
        size: jets to make.
        seed: of the whole data set.
    """
    state = np.random.SeedSequence((seed, label, index)).generate_state(2)
    hard_seed, shower_seed = (int(s) % MAX_PYTHIA_SEED + 1 for s in state)
    counts: Counter[str] = Counter()
    jets = (
        jet
        for pythia in events(CLASSES[label], (hard_seed, shower_seed))
        for jet in event_jets(pythia, counts)
    )
    return np.stack(list(itertools.islice(jets, size))), counts


def make_jets(
    per_class: int, seed: int, processes: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8], list[Counter[str]]]:
    """The shuffled data set.

    Args:
        per_class: jets of each class.
        seed: the same seed gives the same data, whatever the number of processes.
        processes: how many run at once.

    Returns:
        Features of shape (5 per_class, 16), labels of shape (5 per_class,), and for each class
        what became of the hard partons.
    """
    starts = range(0, per_class, CHUNK)
    tasks = [
        (label, start // CHUNK, min(CHUNK, per_class - start), seed)
        for label in range(len(CLASSES))
        for start in starts
    ]
    with ProcessPoolExecutor(processes) as pool:
        chunks = pool.map(make_chunk, *zip(*tasks, strict=True))
        results = list(tqdm(chunks, total=len(tasks), unit="chunk"))
    counts = [Counter[str]() for _ in CLASSES]
    for (label, *_), (_, chunk_counts) in zip(tasks, results, strict=True):
        counts[label] += chunk_counts
    x = np.concatenate([jets for jets, _ in results]).astype(np.float32)
    y = np.repeat(np.arange(len(CLASSES), dtype=np.uint8), per_class)
    order = np.random.default_rng(seed).permutation(len(y))
    return x[order], y[order], counts


def main() -> None:
    """Write the data set, and print what became of the hard partons of each class."""
    parser = argparse.ArgumentParser(description="Generate the jet-substructure data set.")
    parser.add_argument("--per-class", type=int, default=40_000, help="jets of each class")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("jets.npz"))
    args = parser.parse_args()
    x, y, counts = make_jets(args.per_class, args.seed, args.processes)
    np.savez_compressed(args.out, x=x, y=y, features=np.array(FEATURES), classes=np.array(CLASSES))
    for name, count in zip(CLASSES, counts, strict=True):
        print(name, dict(count))


if __name__ == "__main__":
    main()
