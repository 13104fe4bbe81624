"""Will this treatment help this patient? A structural causal model whose every probability is known.

Severe S, indicated M, contraindicated K, treated T and recovery Y of one patient::

    S ~ Bern(.5)    M ~ Bern(.7)    K ~ Bern(.25)    T | S ~ Bern(.9 if S else .1)
    P(Y = 1) = clip((.10 if S else .90) + T * (-.60 if K else .55 if M else 0), .03, .97)    Y = 1[U < P(Y = 1)]

Doctors treat the sick, so the treated fare worse although the treatment helps on average (Simpson's paradox), and what
a model learned without severity breaks under do(T) (Pearl, Causality, 2009). U is kept, so counterfactuals are exact.

One sample holds ``CASES`` patients, each with a condition and an offered treatment that causes one effect. Only the
asked pair counts, and its S, M, K and T are found by joining triples::

    S: patient has_condition c, c worsens symptom        M: treatment causes effect, effect treats symptom
    K: c contraindicates treatment                       T: treatment taken_by patient (else declined_by)

The other cases are wired at random under one constraint: every predicate, entity type and degree occurs equally often
in every sample. Half of the conditions worsen, half of the effects treat, half of the patients took their treatment,
and each condition contraindicates one treatment. So nothing that is counted tells S, M, K or T.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsm.config import DomainConfig, check
from nsm.data.datamodule import Grouping, TripleDataModule
from nsm.data.triples import TripleDataset

P_SEVERE, P_INDICATED, P_CONTRAINDICATED = 0.5, 0.7, 0.25
P_TREATED_MILD, P_TREATED_SEVERE = 0.1, 0.9
RECOVERY_MILD, RECOVERY_SEVERE = 0.90, 0.10
BENEFIT, HARM = 0.55, 0.60
RECOVERY_MIN, RECOVERY_MAX = 0.03, 0.97

CASES = 4
"""Patients in a sample: the asked one and three distractors. Even, so that half of them can differ from the others."""

CAUSES = ("severe", "indicated", "contraindicated", "treated")
RELATIONS = (
    "has_condition",
    "worsens",
    "causes",
    "treats",
    "contraindicates",
    "taken_by",
    "declined_by",
    "recovers_with",
)
CONFIDENCE = {"worsens": RECOVERY_MILD - RECOVERY_SEVERE, "treats": BENEFIT, "contraindicates": HARM}
"""Strength of each mechanism as a change of the recovery probability; what was observed has confidence 1."""

ENTITY_TYPES = ("patient", "condition", "treatment", "effect", "symptom")
TYPE_LEVEL = (1, 1, 1, 2, 2)
NUM_NODES, NUM_EDGES = 4 * CASES + 1, 5 * CASES


@dataclass
class CausalConfig(DomainConfig):
    """Settings of the causal domain."""

    _target_: str = "nsm.data.causal.CausalDataModule"
    num_scenarios: int = 40000
    """Patients over all splits; each test patient is seen twice more, under do(T=1) and under do(T=0)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = "at least 100 patients, so that every split holds both outcomes"
        check(self.num_scenarios >= 100, "domain.num_scenarios", self.num_scenarios, allowed)


class CausalDataModule(TripleDataModule):
    """Patients of the structural causal model; the extra set ``do`` holds every test patient in both arms."""

    name = "causal"
    instance_noun = "patients"
    question = "{object} {relation} {subject}"
    version = 1
    config_class = CausalConfig
    config: CausalConfig
    relations = RELATIONS
    entity_types = ENTITY_TYPES
    num_levels = 2

    def generate(self, rng: np.random.Generator) -> dict[str, TripleDataset]:
        patients = _draw(rng, self.config.num_scenarios)
        instance = np.arange(self.config.num_scenarios)
        train, val, test = np.split(instance, [len(instance) * 70 // 100, len(instance) * 85 // 100])
        sets = {
            name: _samples(patients, rows, patients["treated"][rows])
            for name, rows in (("train", train), ("val", val), ("test", test))
        }
        sets["do"] = _samples(patients, np.repeat(test, 2), np.tile([True, False], len(test)))
        return sets

    @property
    def ceilings(self) -> dict[str, float | None]:
        """Accuracy of the best possible rule, on what was observed and under do(T) with every patient in both arms."""
        return {"test": best_accuracy(CAUSES), "do": best_accuracy(CAUSES, randomised=True)}

    def local_features(self, dataset: TripleDataset) -> dict[str, np.ndarray]:
        causes = read_causes(dataset)
        return {name: np.stack([causes[cause] for cause in seen], axis=1) for name, seen in SHORTCUTS.items()}

    def metrics(self, probabilities: Mapping[str, Tensor]) -> dict[str, float]:
        """How well the model answers what-if questions about the test patients.

        ``accuracy_do``: accuracy under do(T). ``sqrt_pehe``: root of the mean squared error of the effect
        P(Y | do(T=1)) - P(Y | do(T=0)) of each patient (Hill 2011). ``ate_error``: absolute error of its mean.
        ``policy_value``: true recovery probability if those are treated whom the model says it helps.
        ``accuracy_severe`` and ``accuracy_mild``: test accuracy by severity.
        """
        test, do = self.test_set, self.extra_sets["do"]
        correct = ((probabilities["test"] >= 0.5) == test.column("y").bool()).double()
        correct_do = ((probabilities["do"] >= 0.5) == do.column("y").bool()).double()
        severe, treated, truth = test.column("severe").bool(), do.column("treated").bool(), do.column("target").double()
        instance, predicted = do.column("instance"), probabilities["do"].double()
        assert torch.equal(instance[treated], instance[~treated])
        effect, true_effect = predicted[treated] - predicted[~treated], truth[treated] - truth[~treated]
        recovery = torch.where(effect > 0, truth[treated], truth[~treated])
        return {
            "accuracy_do": correct_do.mean().item(),
            "sqrt_pehe": (effect - true_effect).square().mean().sqrt().item(),
            "ate_error": (effect.mean() - true_effect.mean()).abs().item(),
            "policy_value": recovery.mean().item(),
            "accuracy_severe": correct[severe].mean().item(),
            "accuracy_mild": correct[~severe].mean().item(),
        }

    def breakdowns(self, dataset: TripleDataset) -> dict[str, Grouping]:
        """By stratum, severity and what the treatment does to the patient, and by arm."""
        severe, indicated, contraindicated = (dataset.column(cause) for cause in CAUSES[:3])
        effect = torch.where(contraindicated == 1, 2, indicated)
        names = [f"{severity}, {what}" for severity in ("mild", "severe") for what in ("no effect", "helped", "harmed")]
        return {
            "stratum": Grouping(3 * severe + effect, tuple(names)),
            "arm": Grouping(dataset.column("treated"), ("untreated", "treated")),
        }


SHORTCUTS: dict[str, tuple[str, ...]] = {
    "treatment_only": ("treated",),
    "severity_only": ("severe",),
    "blind_to_severity": ("indicated", "contraindicated", "treated"),
}
"""What each cheap model sees."""


def recovery_probability(
    severe: NDArray, indicated: NDArray, contraindicated: NDArray, treated: NDArray
) -> NDArray[np.float64]:
    """P(Y = 1 | S, M, K, do(T)), elementwise."""
    base = np.where(severe, RECOVERY_SEVERE, RECOVERY_MILD)
    effect = np.where(contraindicated, -HARM, np.where(indicated, BENEFIT, 0.0))
    return np.clip(base + np.where(treated, effect, 0.0), RECOVERY_MIN, RECOVERY_MAX)


def population(*, randomised: bool = False) -> tuple[NDArray, NDArray[np.float64], NDArray[np.float64]]:
    """Every combination of S, M, K, T [16, 4], its probability [16] and P(Y = 1) in it [16]; T varies fastest.

    Args:
        randomised: T is decided by a fair coin, do(T), and not by the doctor.
    """
    table = np.array(list(itertools.product((0, 1), repeat=len(CAUSES))))
    severe, indicated, contraindicated, treated = table.T
    p_treated = np.full(len(table), 0.5) if randomised else np.where(severe, P_TREATED_SEVERE, P_TREATED_MILD)
    weight = np.ones(len(table))
    for value, p in (
        (severe, P_SEVERE),
        (indicated, P_INDICATED),
        (contraindicated, P_CONTRAINDICATED),
        (treated, p_treated),
    ):
        weight = weight * np.where(value, p, 1.0 - p)
    return table, weight, recovery_probability(severe, indicated, contraindicated, treated)


def best_accuracy(seen: Sequence[str], *, randomised: bool = False) -> float:
    """Accuracy of the best rule that is learned from observation and sees only the causes ``seen``.

    Args:
        randomised: score the same rule under do(T) and not on what was observed.
    """
    table, observed, recovery = population()
    _, weight, _ = population(randomised=randomised)
    columns = [CAUSES.index(cause) for cause in seen]
    group = table[:, columns] @ (2 ** np.arange(len(columns)))
    recovers = np.bincount(group, observed * recovery) >= 0.5 * np.bincount(group, observed)
    return float(weight @ np.where(recovers[group], recovery, 1.0 - recovery))


def closed_forms() -> dict[str, float]:
    """Every figure that follows from the probabilities alone, by name; ``_do`` means scored under do(T)."""
    figures = {}
    for name, seen in {"majority": (), **SHORTCUTS, "bayes": CAUSES}.items():
        figures[name] = best_accuracy(seen)
        figures[f"{name}_do"] = best_accuracy(seen, randomised=True)
    table, observed, recovery = population()
    treated = table[:, CAUSES.index("treated")] == 1
    figures["naive_difference"] = float(
        np.average(recovery[treated], weights=observed[treated])
        - np.average(recovery[~treated], weights=observed[~treated])
    )
    without, with_treatment = recovery[~treated], recovery[treated]
    stratum = observed[treated] + observed[~treated]
    figures["average_effect"] = float(stratum @ (with_treatment - without))
    figures["policy_best"] = float(stratum @ np.maximum(with_treatment, without))
    figures["policy_everyone"] = float(stratum @ with_treatment)
    figures["policy_naive"] = float(stratum @ (with_treatment if figures["naive_difference"] > 0 else without))
    return figures


def read_causes(dataset: TripleDataset) -> dict[str, NDArray[np.int64]]:
    """S, M, K and T of the asked pair, found by joining the triples of every stored sample: [G] each."""
    columns, start = dataset.columns, dataset.slices["x"][:-1]
    graph = torch.repeat_interleave(torch.arange(len(start)), torch.diff(dataset.slices["edge_type"]))
    source, target = columns["edge_index"] + start[graph]
    treatment, patient = columns["query_index"] + start
    treatment, patient = treatment[graph], patient[graph]

    def edges(relation: str) -> Tensor:
        return columns["edge_type"] == RELATIONS.index(relation)

    def reached(selected: Tensor) -> Tensor:
        marked = torch.zeros(len(columns["x"]), dtype=torch.bool)
        marked[target[selected]] = True
        return marked

    def occurs(selected: Tensor) -> NDArray[np.int64]:
        return (torch.bincount(graph[selected], minlength=len(start)) > 0).long().numpy()

    condition = reached(edges("has_condition") & (source == patient))
    effect = reached(edges("causes") & (source == treatment))
    return {
        "severe": occurs(edges("worsens") & condition[source]),
        "indicated": occurs(edges("treats") & effect[source]),
        "contraindicated": occurs(edges("contraindicates") & condition[source] & (target == treatment)),
        "treated": occurs(edges("taken_by") & (source == treatment) & (target == patient)),
    }


def _draw(rng: np.random.Generator, num: int) -> dict[str, NDArray]:
    """Everything that is random about ``num`` patients and their distractors; rows are patients."""
    severe = rng.random(num) < P_SEVERE
    return {
        "severe": severe,
        "indicated": rng.random(num) < P_INDICATED,
        "contraindicated": rng.random(num) < P_CONTRAINDICATED,
        "treated": rng.random(num) < np.where(severe, P_TREATED_SEVERE, P_TREATED_MILD),
        "threshold": rng.random(num),
        "worsening_rank": _permutations(rng, num, CASES - 1),
        "treating_rank": _permutations(rng, num, CASES - 1),
        "taking_rank": _permutations(rng, num, CASES - 1),
        "offered": _permutations(rng, num, CASES - 1),
        "contraindicating": _permutations(rng, num, CASES - 1),
        "place": _permutations(rng, num, NUM_NODES),
        "edge_order": _permutations(rng, num, NUM_EDGES),
    }


def _samples(patients: Mapping[str, NDArray], rows: NDArray[np.int64], treated: NDArray[np.bool_]) -> TripleDataset:
    """The graphs of the patients ``rows`` [G], in the arms ``treated`` [G].

    An intervention exchanges ``taken_by`` and ``declined_by`` between the asked patient and one distractor, and
    changes nothing else: a single changed edge would show in the counts of predicates.
    """
    drawn = {key: value[rows] for key, value in patients.items()}
    num = len(rows)
    case = np.broadcast_to(np.arange(CASES), (num, CASES))
    patient, condition, treatment, effect = (case + kind * CASES for kind in range(4))
    symptom = np.full((num, CASES // 2), 4 * CASES)
    offered = _asked_first(drawn["offered"])
    forbidden = _asked_first(drawn["contraindicating"])
    forbidden = np.where(drawn["contraindicated"][:, None], forbidden, np.roll(forbidden, 1, axis=1))
    worsening = np.nonzero(_half(drawn["severe"], drawn["worsening_rank"]))[1].reshape(num, -1) + CASES
    treating = np.nonzero(_half(drawn["indicated"], drawn["treating_rank"]))[1].reshape(num, -1) + 3 * CASES
    taking = _half(treated, drawn["taking_rank"])

    statements = (
        (patient, "has_condition", condition),
        (worsening, "worsens", symptom),
        (treatment, "causes", effect),
        (treating, "treats", symptom),
        (condition, "contraindicates", forbidden + 2 * CASES),
        (offered + 2 * CASES, "declined_by", patient),
    )
    source = np.concatenate([subjects for subjects, _, _ in statements], axis=1)
    target = np.concatenate([objects for _, _, objects in statements], axis=1)
    sizes = [subjects.shape[1] for subjects, _, _ in statements]
    edge_type = np.tile(np.repeat([RELATIONS.index(name) for _, name, _ in statements], sizes), (num, 1))
    edge_type[:, -CASES:][taking] = RELATIONS.index("taken_by")

    place, order = drawn["place"], drawn["edge_order"]
    source, target = (np.take_along_axis(place, ends, axis=1) for ends in (source, target))
    source, target, edge_type = (np.take_along_axis(values, order, axis=1) for values in (source, target, edge_type))
    token = np.empty((num, NUM_NODES), dtype=np.int64)
    np.put_along_axis(token, place, np.append(np.repeat(np.arange(4), CASES), 4)[None], axis=1)
    causes = {cause: drawn[cause] for cause in CAUSES} | {"treated": treated}
    probability = recovery_probability(**causes)
    return TripleDataset.from_columns(
        num_nodes=np.full(num, NUM_NODES),
        num_edges=np.full(num, NUM_EDGES),
        x=token.ravel(),
        level=np.array(TYPE_LEVEL)[token].ravel(),
        edge_index=np.stack([source.ravel(), target.ravel()]),
        edge_type=edge_type.ravel(),
        edge_attr=np.array([CONFIDENCE.get(name, 1.0) for name in RELATIONS])[edge_type].ravel(),
        query_index=np.stack([place[:, 2 * CASES], place[:, 0]]),
        query_type=np.full(num, RELATIONS.index("recovers_with")),
        y=drawn["threshold"] < probability,
        instance=rows,
        target=probability,
        **causes,
    )


def _permutations(rng: np.random.Generator, num: int, size: int) -> NDArray[np.int64]:
    """Independent random orders of ``range(size)``: [num, size]."""
    return np.argsort(rng.random((num, size)), axis=1, kind="stable")


def _asked_first(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pair the asked case with itself and the others as ``order`` says: [G, CASES - 1] to [G, CASES]."""
    return np.pad(order + 1, ((0, 0), (1, 0)))


def _half(asked: NDArray[np.bool_], rank: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Choose half of the cases, the asked one where ``asked`` [G], the rest by ``rank`` [G, CASES - 1]: [G, CASES]."""
    others = rank < (CASES // 2 - asked)[:, None]
    return np.concatenate([asked[:, None], others], axis=1)
