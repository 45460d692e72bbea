"""The report of a compaction as one HTML page that needs nothing else. Pure: values in, text out."""

from __future__ import annotations

from collections.abc import Iterator

from edgedi.pages.document import document
from edgedi.pages.markup import Markup, element
from edgedi.pages.parts import cards, details, legend, section, swatch, table
from edgedi.transforms.report import Compaction, Step
from edgedi.transforms.saved.figures import curve_chart, has_outputs, score_text, step_colours, widths_chart
from edgedi.transforms.score import Score
from edgedi.transforms.size import Size


def compaction_page(compaction: Compaction, name: str, json_text: str) -> str:
    """One HTML document; ``name`` is the network's, ``json_text`` are the numbers behind it."""
    sections = [_steps(compaction), _curve(compaction), _widths(compaction), _layers(compaction)]
    every = details("Every number of this page, as JSON", element("pre", json_text))
    return document(f"{name}, compacted", element("main", _head(compaction, name), *sections, every))


def _head(compaction: Compaction, name: str) -> Markup:
    names = ", ".join(step.name for step in compaction.steps) or "no step"
    notes = [f"{step.name}: {step.note}" for step in compaction.steps if step.note]
    return element(
        "header",
        element("h1", f"{name}, compacted"),
        element("p", f"{names}; {sum(step.seconds for step in compaction.steps):.1f} s", class_="sub"),
        cards(_cards(compaction)),
        element("ul", *(element("li", note) for note in notes), class_="caveats") if notes else "",
    )


def _cards(compaction: Compaction) -> Iterator[tuple[str, str]]:
    if compaction.steps:
        before, after = compaction.steps[0].before, compaction.steps[-1].after
        yield _share(before.macs, after.macs), f"MACs: {before.macs:,} \u2192 {after.macs:,}"
        said = f"parameters: {before.parameters:,} \u2192 {after.parameters:,}"
        yield _share(before.parameters, after.parameters), said
        yield _share(before.num_bytes, after.num_bytes), f"bytes: {before.num_bytes:,} \u2192 {after.num_bytes:,}"
    last = compaction.steps[-1].score if compaction.steps else None
    if compaction.score is not None and last is not None:
        low_high = "" if last.interval is None else " [{}, {}]".format(*(f"{end:.2%}" for end in last.interval))
        yield score_text(last.value, last), f"score{low_high}; the original's is {compaction.score}"
    else:
        yield f"{compaction.difference:.1e}", "largest difference of the answer, of its largest value"


def _share(before: int, after: int) -> str:
    return f"{after / before - 1:+.1%}" if before else "0"


# --- sections ---------------------------------------------------------------------------------------------------------


def _steps(compaction: Compaction) -> Markup:
    see = (
        "Each step works on what the one before it left. The difference is the largest of any value from the "
        "original's answer on the example inputs, as a share of its largest value."
    )
    trains = any(step.training_steps for step in compaction.steps)  # else its column would be empty, and in the way
    heads = ("step", "parameters", "MACs", "bytes", "score", "difference", "seconds", *["training steps"] * trains)
    rows = [_step_row(step, trains) for step in compaction.steps]
    alone = [_left_alone(step) for step in compaction.steps if step.left_alone]
    return section("steps", "Step by step", see, table(heads, rows), *alone)


def _left_alone(step: Step) -> Markup:
    layers = element("ul", *(element("li", layer) for layer in step.left_alone))
    return details(f"Layers whose channels {step.name} left alone: {len(step.left_alone)}", layers)


def _step_row(step: Step, trains: bool) -> list[str]:
    score = "" if step.score is None else str(step.score)
    trained = f"{step.training_steps:,}" if step.training_steps else ""
    numbers = [f"{step.difference:.1e}", f"{step.seconds:.1f}", *[trained] * trains]
    return [step.name, *_changes(step.before, step.after), score, *numbers]


def _changes(before: Size, after: Size) -> list[str]:
    pairs = ((before.parameters, after.parameters), (before.macs, after.macs), (before.num_bytes, after.num_bytes))
    return [f"{a:,} \u2192 {b:,}" if a != b else f"{a:,}" for a, b in pairs]


def _curve(compaction: Compaction) -> Markup:
    title = "Score against MACs"
    if compaction.score is None or not compaction.curve:
        return section("curve", title, "There was no data to take a score from, so only exact changes were made.")
    see = (
        "Further left is cheaper, further up is better. Each dot is a network that was judged on the way, kept or not; "
        "the dotted line is the original's score" + _band(compaction.score) + ". The ring is the network returned."
    )
    marks = legend([(swatch(class_), step) for step, class_ in step_colours(compaction.curve)])
    return section("curve", title, see, marks, curve_chart(compaction.curve, compaction.score))


def _band(score: Score) -> str:
    return ", the band its 95 % interval" if score.interval else ""


def _widths(compaction: Compaction) -> Markup:
    layers = [layer for layer in compaction.layers if has_outputs(layer)]
    if not layers:
        return section("widths", "Widths", "No layer of this network has a width.")
    see = (
        "Pale is every layer's outputs before, full is what is left of them, beside it their numbers. A layer is gone "
        "where nothing needs it, or something else stands in its place."
    )
    return section("widths", "Widths of the layers", see, widths_chart(layers))


def _layers(compaction: Compaction) -> Markup:
    changed = [layer for layer in compaction.layers if layer.changed]
    rows = [
        [
            layer.before.name, layer.before.kind, _arrow(layer.before.width),
            _arrow(layer.after.width) if layer.after else "gone",
            *_changes(layer.before.size, layer.after.size if layer.after else Size()),
        ]
        for layer in changed
    ]  # fmt: skip
    see = f"{len(changed)} layers changed, {len(compaction.layers) - len(changed)} are as they were."
    heads = ("layer", "kind", "width before", "width after", "parameters", "MACs", "bytes")
    shown = details("Every layer that changed", table(heads, rows, words=2)) if rows else ""
    return section("layers", "What changed", see, shown)


def _arrow(width: str) -> str:
    return width.replace("->", "\u2192")
