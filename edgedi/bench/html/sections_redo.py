"""The end of the page: everything needed to do the run again, and what its numbers do not say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from edgedi.bench.report import Report
from edgedi.bench.words import computing_remarks
from edgedi.pages.markup import Markup, element, joined
from edgedi.pages.parts import definitions, details, section

# --- to redo it -------------------------------------------------------------------------------------------------------


def redo(report: Report, json_text: str) -> Markup:
    """Everything that a reader needs to do it again, and what was not measured."""
    machine = report.machine
    command = element("pre", machine.command, class_="wrap")
    facts = definitions(_facts(report))
    limits = element("ul", *(element("li", sentence) for sentence in not_modelled(report)))
    return joined(
        [
            section("redo", "To do it again", "The command, and what it ran on.", command, facts),
            section(
                "limits",
                "What these numbers do not say",
                "What is emulated, left out, or not like your network.",
                limits,
            ),
            details("Every number of this page, as JSON", element("pre", json_text)),
            element("footer", f"Written by edgedi {machine.edgedi}, {machine.date}."),
        ]
    )


def _facts(report: Report) -> Sequence[tuple[str, object]]:
    machine, settings = report.machine, report.settings
    versions: Mapping[str, str] = {single.result.name: single.version for single in report.singles}
    engines = ", ".join(f"{name} {version}" for name, version in versions.items()) or "none"
    where = "running workers at " + ", ".join(settings.workers) if settings.workers else "local processes"
    where = report.emulation or where
    return (
        ("processor", f"{machine.processor}, {machine.num_cores} cores usable"),
        ("system", machine.system),
        ("versions", f"edgedi {machine.edgedi}, torch {machine.torch}, Python {machine.python}"),
        ("engines", engines),
        ("workers", f"{', '.join(report.workers)}: {where}{', each on cores of its own' if report.pinned else ''}"),
        ("layers", " ".join(computing_remarks(report.workers, report.computed_by))),
        ("threads", f"{settings.threads} for each worker and each engine"),
        ("rounds", f"{report.num_rounds} of {settings.rounds}, {settings.repeat} request(s) in each turn"),
        ("others before", f"{machine.others_share:.0%} of all processors"),
        ("date", machine.date),
    )


def not_modelled(report: Report) -> Iterator[str]:
    """The limits of the figures, a sentence each."""
    if report.emulation:
        yield f"The devices and links are emulated: {report.emulation}."
        yield (
            "A sleeping device hides communication better than a busy core does, and bytes are moved at this machine's "
            "speed: see docs/method.md."
        )
    elif report.settings.workers:
        yield "The workers run where their addresses say; the links between them are whatever connects them."
    else:
        yield (
            "Nothing is emulated, and nothing of a network is modelled: the workers are processes of one machine and "
            "talk over loopback, which is faster than any network between devices."
        )
        yield "The workers share this machine's caches, memory bandwidth and clock: devices of their own would not."
    yield "Weights and inputs are random numbers of a fixed seed; neither speed nor exactness asks what they are."
    yield "A request is timed where its user stands: input and answer on the host of the coordinator."
    yield (
        "The bound is measured on noise, all workers at once, before the rounds, as the least of several repeats of "
        "every layer, and added up for the slowest worker of each segment; what no worker runs is predicted."
    )
    yield "Engines run in processes of their own in float32, with as many threads and cores as one worker."
    yield "Energy, temperature and throttling are not measured."
