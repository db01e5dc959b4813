"""The report as a page: its structure, that it is inert, what its pictures hold, and whether methods differ."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product
from math import erfc, sqrt
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata, wilcoxon

from errata.evaluation.metrics import Mean
from errata.evaluation.protocols import PROTOCOLS
from errata.report.charts import Axis, Chart, figures
from errata.report.html import page
from errata.report.markdown import markdown
from errata.report.names import short_names
from errata.report.published import falling
from errata.report.sections import Section, report_sections
from errata.report.significance import EXACT, compare, exact, holm
from errata.types import Row

VOID = ("meta",)
EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'


class Read(HTMLParser):
    """The tags of a page with their attributes, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] == "script" else self.texts).append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def row(**fields: Any) -> Row:
    return Row(**{"model": "m", "data": "d", "kind": "edit", "metric": "accuracy", "before": 0.0, **fields})


def rows_of(**answers: str) -> list[Row]:
    """Method -> "110", the answers of its cases: to edits, paraphrases (the same) and neighbours (all right)."""
    made: list[Row] = []
    for method, right in answers.items():
        for i, digit in enumerate(right):
            of: Any = {"method": method, "setting": "batch of 3", "case": str(i)}
            made += [row(**of, after=float(digit)), row(**of, kind="paraphrase", after=float(digit))]
            made += [row(**of, kind="neighborhood", metric="agreement", after=1.0)]
        cost: Any = {"method": method, "setting": "batch of 3", "case": "batch 1", "kind": "cost", "before": None}
        made += [row(**cost, metric="seconds_per_edit", after=0.5 * len(method))]
    return made


def sequence(**answers: tuple[str, str]) -> list[Row]:
    """Method -> the answers after two edits and after four."""
    made: list[Row] = []
    for method, at in answers.items():
        for n, right in zip((2, 4), at):
            of: Any = {"method": method, "setting": "sequential by 2", "after_edits": n}
            made += [row(**of, case=str(i), after=float(digit)) for i, digit in enumerate(right)]
            made += [row(**of, case="all", kind="cost", metric="seconds_per_edit", before=None, after=1.0)]
    return made


# The page ----------------------------------------------------------------------------------------


def test_a_page_is_whole_and_shows_texts_as_they_are() -> None:
    rows = [
        row(method="a", setting="<b>one</b>", case="1", after=1.0),
        row(method="a", setting="two", case="1", error="<script>x</script>"),
    ]
    text = page(rows, title="T & U", note="a < b")
    read = Read(text)
    assert text.startswith("<!doctype html>") and not read.open
    assert not {"b", "link", "img", "iframe", "object", "form"} & {tag for tag, _ in read.tags}
    tables = sum(len(section.tables()) for section in report_sections(rows))
    assert (len(read.all("style")), len(read.all("table")), len(read.all("main"))) == (1, tables, 1)
    for shown in ("T & U", "a < b", "<b>one</b> · m · d · generated", "a: <script>x</script>"):
        assert shown in read.texts


def test_the_page_runs_its_own_script_alone_and_loads_nothing() -> None:
    rows = [r for name in (EVIL, "b") for r in rows_of(**{name: "110"})]
    rows += sequence(**{EVIL: ("11", "1101"), f"b {EVIL}": ("11", "1111")})
    rows += [row(method=EVIL, settings=EVIL, model=EVIL, setting=EVIL, data=EVIL, kind=EVIL, case=EVIL, error=EVIL)]
    plain, read = Read(page(rows_of(a="110", b="111"))), Read(page(rows, title=EVIL, note=EVIL))
    assert len(read.all("script")) == 1 and read.all("script") == [{}] and read.scripts == plain.scripts
    text = page(rows)
    (raw,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(raw.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in read.all("meta") if meta.get("http-equiv")]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    attributes = [name for _, given in read.tags for name in given]
    assert not [
        name for name in attributes if name.startswith("on") or name in ("src", "srcset", "style", "xlink:href")
    ]
    assert all(str(a["href"]).startswith("#") for a in read.all("a"))
    assert not {"img", "image", "use", "foreignobject"} & {tag for tag, _ in read.tags}
    assert "url(" not in text and "@import" not in text


def test_tables_and_pictures_can_be_read_aloud() -> None:
    rows = [*rows_of(a="110", b="111", c="000"), *sequence(a=("11", "1101"), b=("11", "1111"))]
    read = Read(page(rows))
    assert {head["scope"] for head in read.all("th")} == {"col", "row"}
    assert len(read.all("caption")) == len(read.all("table")) > 3
    drawn = [svg for svg in read.all("svg") if svg.get("role") == "img"]
    assert len(drawn) == 4 and all(svg["aria-label"] for svg in drawn)  # two trade-offs; two curves of the sequence
    assert all(svg.get("role") == "img" or svg.get("aria-hidden") == "true" for svg in read.all("svg"))
    assert "paraphrases against neighbours: agreement" in str(drawn[0]["aria-label"])
    assert "c: 0.00 ± 0.00 (3) paraphrases" not in read.texts
    assert any(text.startswith("c: 1.00 ± 0.00 (3) neighbours: agreement, 0.00 ± 0.00 (3)") for text in read.texts)


def test_a_cell_is_shaded_by_its_share_and_a_distance_is_not() -> None:
    text = page(rows_of(a="110", b="111"))
    assert '<td class="share h7">0.67 <small>± 0.33 (3)</small></td>' in text
    assert '<td class="share h10">1.00' in text and "<td>0.5</td>" in text  # seconds
    gold = page([row(method="a", setting="s", case="1", metric="to_gold", after=0.5)])
    assert "<td>0.50 (1)</td>" in gold


def test_the_same_numbers_stand_in_both_forms() -> None:
    rows = rows_of(a="110", b="111", c="000")
    texts = "".join(Read(page(rows)).texts)
    (section,) = report_sections(rows)
    for table in section.tables():
        for line in table.body:
            assert table.aside or f"| {' | '.join(line)} |" in markdown(rows)
            assert all(cell.replace(" ", "") in texts.replace(" ", "") for cell in line)
    assert [table.aside for table in section.tables()] == [False, False, True, True, True, False]


# Pictures ----------------------------------------------------------------------------------------


def test_trade_offs_place_each_method_by_its_means() -> None:
    (section,) = report_sections(rows_of(a="110", bb="111", ccc="000"))
    (figure,) = figures(section)
    tradeoff, cost = figure.charts
    assert (tradeoff.x.name, tradeoff.y.name) == ("neighbours: agreement", "paraphrases")
    assert (cost.x.name, cost.y.name, cost.x.log) == ("seconds per edit", "quality", True)
    assert [mark.y for mark in tradeoff.marks] == [tradeoff.y.y(value) for value in (2 / 3, 1.0, 0.0)]
    assert {mark.x for mark in tradeoff.marks} == {tradeoff.x.x(1.0)}
    assert [mark.label for mark in tradeoff.marks] == ["a", "bb", "ccc"]
    # a: 3 / (3/2 + 3/2 + 1)
    assert [mark.y for mark in cost.marks] == [cost.y.y(value) for value in (0.75, 1.0, 0.0)]
    assert [mark.x for mark in cost.marks] == [cost.x.x(value) for value in (0.5, 1.0, 1.5)]


def test_methods_at_one_place_are_one_mark() -> None:
    (section,) = report_sections(rows_of(a="11", b="11", c="11", d="11", e="00"))
    mark, other = figures(section)[0].charts[0].marks
    assert (mark.count, mark.label) == (4, "a, b, c +1") and other.count == 1
    assert [line[:2] for line in mark.title.split("\n")] == ["a:", "b:", "c:", "d:"]


def test_curves_have_a_line_for_each_method_through_its_checkpoints() -> None:
    (section,) = report_sections(sequence(a=("10", "1101"), b=("11", "1111")))
    (figure,) = [figure for figure in figures(section) if figure.legend]
    (chart,) = figure.charts
    assert figure.legend == ((0, "a", "a"), (1, "b", "b")) and chart.title == "reliability"
    a, b = chart.curves
    x, y = chart.x, chart.y
    assert a.line == f"M{x.x(2):g} {y.y(0.5):g}L{x.x(4):g} {y.y(0.75):g}" and a.errors.count("M") == 2
    assert a.title == "a\n2 edits: 0.50 ± 0.50 (2)\n4 edits: 0.75 ± 0.25 (4)" and not b.errors


def test_one_method_alone_trades_nothing_off() -> None:
    (section,) = report_sections(rows_of(a="110"))
    assert figures(section) == [] and "<svg" not in page(rows_of(a="110"))


def test_a_protocols_own_numbers_are_drawn() -> None:
    rows: list[Row] = []
    for method, wins in (("a", (1.0, 0.0)), ("b", (1.0, 1.0))):
        for i, after in enumerate(wins):
            of: Any = {"method": method, "setting": "s", "protocol": "rome", "mode": "forced", "case": str(i)}
            rows += [row(**of, kind=kind, metric="success", after=after) for kind in ("edit", "paraphrase")]
            rows += [row(**of, kind="neighborhood", metric="success", after=1.0)]
    section = report_sections(rows)[-1]
    (chart,) = figures(section)[0].charts
    assert (chart.x.name, chart.y.name) == ("NS", "PS")
    assert [mark.y for mark in chart.marks] == [chart.y.y(50.0), chart.y.y(100.0)]
    table = section.tables()[1]
    assert table.head == ("method", "ES", "PS", "NS") and table.body[1][1] == "best"
    assert table.body[0][1] == "-50.00 ± 50.00 (2), p = 1"


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 1, False, "0 0.2 0.4 0.6 0.8 1"),
        (-0.06, 1.06, False, "0 0.2 0.4 0.6 0.8 1"),
        (0, 1500, False, "0 500 1,000 1,500"),
        (0.004, 3.0, True, "0.01 0.1 1"),
        (0.9, 12.0, True, "1 2 5 10"),
    ],
)
def test_an_axis_has_round_ticks(low: float, high: float, log: bool, expected: str) -> None:
    axis = Axis("x", low, high, log)
    assert " ".join(text for _, text in axis.ticks()) == expected
    assert axis.x(low) < axis.x(high) and axis.y(low) > axis.y(high)


def test_equal_values_have_an_axis_too() -> None:
    for section in report_sections(rows_of(a="11", b="11")):
        for chart in (chart for figure in figures(section) for chart in figure.charts):
            assert isinstance(chart, Chart) and chart.x.low < chart.x.high and chart.y.low < chart.y.high


def test_short_names_are_the_method_where_it_is_alone_and_never_the_same() -> None:
    long = "memit " + " ".join(f"setting{i}=1" for i in range(9))
    names = ["ft lr=0.1", "memit", long, f"{long} x=2", "memit blue=True"]
    short = short_names(names)
    assert [short[name] for name in (*names[:2], names[4])] == ["ft", "memit", "memit blue=True"]
    assert short[long].endswith("…") and short[f"{long} x=2"] == f"{short[long]} (2)"
    assert max(map(len, short.values())) <= 34 and len(set(short.values())) == len(names)


# Whether methods differ --------------------------------------------------------------------------


def test_holm_multiplies_the_smallest_by_the_number_of_tests_and_so_on() -> None:
    # 0.01 x 4, 0.02 x 3, 0.03 x 2 (below the one before it), 0.9 x 1
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0] and holm([]) == []


def test_pairs_are_of_the_same_cases() -> None:
    a = {"1": 1.0, "2": 1.0, "3": 0.0}
    made = compare({"a": a, "b": {"2": 0.0, "3": 0.0, "4": 1.0}, "none": {}})
    assert made is not None and made.order == ("a", "b") and made.best == "a"
    assert made.difference("a", "b") == Mean(0.5, 0.5, 2) and made.difference("b", "a") == Mean(-0.5, 0.5, 2)
    assert compare({"a": a, "none": {}}) is None


def test_p_is_that_of_the_signed_rank_test_corrected_over_all_pairs() -> None:
    n = EXACT + 1
    won, lost = {str(i): 1.0 for i in range(n)}, {str(i): float(i < n // 3) for i in range(n)}
    made = compare({"a": won, "b": lost, "c": {str(i): 0.0 for i in range(n)}})
    assert made is not None
    # All n ranks are (n + 1)/2: W is their sum, its mean half of it, its variance as of ties; corrected by 1/2
    z = (n * (n + 1) / 4 - 0.5) / sqrt(n * (n + 1) * (2 * n + 1) / 24 - (n**3 - n) / 48)
    assert made.p["a", "c"] == pytest.approx(3 * erfc(z / sqrt(2)))
    few = n // 3  # cases differ between b and c, each as much: two of the 2^few signs are as far from the mean
    assert made.p["c", "b"] == pytest.approx(2 / 2**few)  # the largest of the three
    assert (made.sign("a", "c"), made.sign("c", "a"), made.sign("b", "c")) == ("+", "−", "+")
    same = compare({"a": won, "b": dict(won)})
    assert same is not None and same.p["a", "b"] == 1.0 and same.sign("a", "b") == ""


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_p_of_few_differences_is_exact_with_ties_and_without(n: int) -> None:
    rng = np.random.default_rng(n)
    for differences in (rng.normal(size=n), rng.choice([-1.0, -0.5, 0.5, 1.0], n), rng.choice([-1.0, 1.0], n)):
        ranks = rankdata(abs(differences))
        sums = np.array([ranks[np.array(signs, bool)].sum() for signs in product((0, 1), repeat=n)])
        far = abs(sums - sums.mean()) >= abs(ranks[differences > 0].sum() - sums.mean())
        assert exact(differences) == pytest.approx(far.mean())


def test_p_without_ties_is_that_of_scipy() -> None:
    differences = np.random.default_rng(0).normal(0.4, 1.0, size=EXACT)
    assert exact(differences) == pytest.approx(wilcoxon(differences, method="exact").pvalue)


def test_cases_in_which_two_methods_agree_are_no_differences() -> None:
    agree = {str(i): 1.0 for i in range(100)}
    made = compare({"a": {**agree, "x": 1.0, "y": 1.0}, "b": {**agree, "x": 0.0, "y": 0.0}})
    assert made is not None and made.p["a", "b"] == 0.5  # of the signs of two


def test_methods_that_share_no_case_are_not_compared() -> None:
    made = compare({"a": {"1": 1.0, "2": 1.0}, "b": {"3": 0.0, "4": 0.0}})
    assert made is not None and made.p["a", "b"] == 1.0
    assert made.difference("a", "b") is None and made.sign("a", "b") == ""


def test_the_report_says_how_far_each_is_behind_the_best() -> None:
    (section,) = report_sections(rows_of(a="1" * 12, b="0" * 12, c="1" * 12))
    assert isinstance(section, Section)
    behind, *signs = section.tables()[1:4]
    assert behind.head == ("method", "reliability", "paraphrases", "neighbours: agreement")
    lines = {line[0]: line[1:] for line in behind.body}
    assert lines["a"] == ("best",) * 3 and lines["c"][0] == "0.00 ± 0.00 (12), p = 1"
    assert lines["b"][0].startswith("-1.00 ± 0.00 (12), p = 0.00")
    assert signs[0].body == (("1 a", "·", "", "+"), ("2 c", "", "·", "+"), ("3 b", "−", "−", "·"))


def test_where_less_is_better_the_best_has_least() -> None:
    values = {"good": {("a", str(i)): 0.0 for i in range(30)}, "bad": {("a", str(i)): 1.0 for i in range(30)}}
    for less, best in ((True, "good"), (False, "bad")):
        found = compare(values, less)
        assert found is not None and found.best == best and found.sign(best, found.order[1]) == "+"
    assert "old answer first: edit" in falling(PROTOCOLS["belief"])
    assert falling(PROTOCOLS["errata"]) == frozenset()


def test_a_course_of_what_was_measured_before_alone_is_not_drawn() -> None:
    rows = sequence(a=("10", "1101"))
    lost = [replace(row, kind="text", metric="loss", before=2.0, after=None, error="Unsupported: x") for row in rows]
    (section,) = report_sections([*rows, *lost])
    assert section.course_of("loss on text") and {n for _, n in section.course_of("loss on text")} == {0}
    assert [chart.title for figure in figures(section) if figure.legend for chart in figure.charts] == ["reliability"]
