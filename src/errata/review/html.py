"""A review as one page of HTML, in the skeleton and style of reports; needs no other file."""

from errata.report.charts import Axis, Chart, Curve
from errata.report.html import rendered
from errata.review import outline
from errata.review.record import BAD, Review

CHART = "Change of each block's output"


def page(review: Review) -> str:
    """The page: verdict, measures with their limits, what moved, where the weights changed, all questions."""
    moved = outline.examples(review)
    return rendered(
        "review.html.j2",
        "errata.review",
        title=f"Review: {outline.about(review)}",
        notes=[_when(review), *review.notes],
        review=review,
        verdict=outline.verdict(review),
        measures=outline.measures(review),
        counted=outline.counted(review),
        moved=moved,
        others=[question for question in review.questions if question.verdict not in BAD],
        weights=outline.weights(review),
        parts=outline.other_parts(review),
        chart=chart(review),
        words=outline.kind_words,
        source=outline.source,
        dash=outline.DASH,
    )


def _when(review: Review) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in review.versions.items())
    patch = f"; patch {review.patch}" * bool(review.patch)
    return f"{review.time}, seed {review.seed}, {review.seconds:g} s; model {review.fingerprint}{patch}; {versions}"


def chart(review: Review) -> Chart | None:
    """The relative change of each block's output; None where fewer than two were measured."""
    changes = list(review.blocks.values())
    if len(changes) < 2:
        return None
    limit = next((guard.limit for guard in review.guards if guard.name == "max_block"), None)
    top = max(changes) * 1.1 or 1.0
    x, y = Axis("block", -0.5, len(changes) - 0.5), Axis(CHART, 0.0, top)
    places = [f"{x.x(i):g} {y.y(change):g}" for i, change in enumerate(changes)]
    dots = "".join(f"M{place}h0" for place in places)
    title = "\n".join(f"block {i}: {outline.number(change)}" for i, change in enumerate(changes))
    note = "mean over canary text of ‖h′ − h‖ / ‖h‖" + ("" if limit is None else f"; the limit is {limit:g}")
    return Chart(CHART, x, y, note, curves=(Curve(0, title, "M" + "L".join(places), dots, ""),))
