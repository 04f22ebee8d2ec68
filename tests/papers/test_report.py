"""Reports: published beside ours, verdicts, and pages that need nothing else."""

import math
import re

import pytest

import evenkeel as ek
from evenkeel.output.files import write_json
from evenkeel.papers.catalogue import find
from evenkeel.papers.lab.report import ExperimentReport, coverage, findings, read_reports, to_html, to_markdown
from evenkeel.papers.lab.results import Record, Results
from evenkeel.papers.lab.specs import arm_name

((PAPER, MOMENTS),) = find("hendrycks2016/moments")
((_, MNIST),) = find("hendrycks2016/mnist")
((LI, ADJUST),) = find("li2018/adjust")


def content(paper, experiment, factors, seed=0, scale="full", history=(), **figures):
    return {
        "paper": paper.name,
        "experiment": experiment.name,
        "scale": scale,
        "factors": factors,
        "seed": seed,
        "figures": figures,
        "history": list(history),
        "seconds": {"training": 1.0, "measuring": 1.0},
    }


def moments_report(**changed):
    figures = {"second": 0.5, "derivative_second": 0.5, "derivative_squared": 0.25}
    figures |= {"drawn_second": 0.4999, "drawn_derivative_second": 0.5001} | changed
    record = Record.of(content(PAPER, MOMENTS, {"activation": "relu"}, **figures))
    return ExperimentReport(PAPER, MOMENTS, "full", Results([record]))


def adjust_report(seeds=3):
    records = [
        content(LI, ADJUST, {"data": "cifar10", "net": "wrn", "place": place, "p": p}, seed, "quick", **figures)
        for place, p in (("none", 0.0), ("a", 0.5))
        for seed in range(seeds)
        for figures in [{"test_error": 0.3 + seed / 100, "adjusted_error": 0.2 + seed / 90, "corrected_error": 0.25}]
    ]
    return ExperimentReport(LI, ADJUST, "quick", Results(map(Record.of, records)), "li2018")


def test_a_row_has_the_published_figure_beside_ours():
    report = moments_report()
    cells = dict(zip(report.headings, *report.rows, strict=True))
    assert cells["arm"] == "relu" and cells["seeds"] == "1"
    assert cells["E f^2, published"] == cells["E f^2, ours"] == "0.5000"
    assert cells["E f^2, drawn"] == "0.4999"  # nothing is published of these


def test_figures_are_means_with_deviations_over_seeds_in_the_columns_unit():
    cells = dict(zip(adjust_report().headings, adjust_report().rows[1], strict=True))
    assert cells["test error %, ours"] == "31.00 ± 1" and cells["test error %, published"] == "4.59"


def test_what_was_found_by_no_seed_is_left_empty_and_what_is_no_number_is_said():
    factors = {"data": "cifar10", "net": "wrn", "place": "a", "p": 0.5}
    record = Record.of(content(LI, ADJUST, factors, test_error=math.nan, adjusted_error=0.5))
    cells = dict(
        zip(adjust_report().headings, *ExperimentReport(LI, ADJUST, "quick", Results([record])).rows, strict=True)
    )
    assert cells["test error %, ours"] == "nan" and cells["without data %"] == ""


def test_the_tuned_factor_has_a_column_and_its_arms_are_one_row():
    records = [
        content(
            PAPER,
            MNIST,
            {"activation": "relu", "keep": 0.5, "init": init, "lr": lr},
            test_error=0.1,
            validation_loss=loss,
            mean_validation_loss=loss,
        )
        for init in ("ours", "he")
        for lr, loss in ((1e-3, 2.0), (1e-4, 1.0 if init == "ours" else 3.0))
    ]
    report = ExperimentReport(PAPER, MNIST, "full", Results(map(Record.of, records)))
    assert [row[:3] for row in report.rows] == [["relu-0.5-ours", "1", "0.0001"], ["relu-0.5-he", "1", "0.001"]]


def test_markdown_has_a_line_a_claim_and_six_cells_a_line():
    report = adjust_report()
    lines = to_markdown([report]).splitlines()
    assert len(lines) == 2 + len(report.verdicts) + 2
    table = lines[:-2]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {8}
    assert lines[2].startswith("| li2018 Table 3: ") and lines[2].endswith("| quick | 3 | [6 runs](li2018) | yes |")


def test_the_larger_scale_counts_and_where_they_disagree_is_said():
    quick = adjust_report()
    turned = [
        Record.of({**row.content, "scale": "desk", "figures": {**row.figures, "adjusted_error": 0.9}})
        for row in quick.results
    ]
    desk = ExperimentReport(LI, ADJUST, "desk", Results(turned), "desk")
    for reports in ([quick, desk], [desk, quick]):
        found = {finding.verdict.claim.text: finding for finding in findings(reports)}
        assert len(found) == len(ADJUST.claims)
        lowered = found["With dropout (a) of 0.5, adjusted statistics lower the test error."]
        assert (lowered.report.scale, lowered.verdict.holds) == ("desk", "no") and lowered.others == {"quick": "yes"}
        assert lowered.ours == f"{lowered.verdict.ours}; at quick scale: yes"
        without = found["Without data, correction lowers it, too (ours)."]
        assert without.report.scale == "desk" and without.others == {}


def test_a_larger_scale_that_decides_nothing_is_said_beside_the_one_that_does():
    quick = adjust_report()
    seed = [Record.of({**row.content, "scale": "desk"}) for row in quick.results if row.seed == 0]
    desk = ExperimentReport(LI, ADJUST, "desk", Results(seed), "desk")
    assert {v.holds for v in desk.verdicts} == {"undecided", "not run"}
    found = {finding.verdict.claim.text: finding for finding in findings([quick, desk])}
    lowered = found["With dropout (a) of 0.5, adjusted statistics lower the test error."]
    assert (lowered.report.scale, lowered.verdict.holds) == ("quick", "yes")
    assert "; at desk scale: undecided (+" in lowered.ours and lowered.ours.endswith("1 of 1 pairs)")


def test_where_no_scale_decides_that_of_most_seeds_counts():
    quick = adjust_report()
    little = {0: 0.2, 1: 0.31}  # adjusted errors, of which the second hardly differs
    few = [
        Record.of({**row.content, "figures": {**row.figures, "adjusted_error": little[row.seed]}})
        for row in quick.results
        if row.seed in little
    ]
    seed = [Record.of({**row.content, "scale": "desk"}) for row in quick.results if row.seed == 0]
    reports = [
        ExperimentReport(LI, ADJUST, scale, Results(rows), scale) for scale, rows in (("quick", few), ("desk", seed))
    ]
    found = {finding.verdict.claim.text: finding for finding in findings(reports)}
    lowered = found["With dropout (a) of 0.5, adjusted statistics lower the test error."]
    assert (lowered.report.scale, lowered.verdict.holds, lowered.verdict.seeds) == ("quick", "undecided", 2)
    assert "; at desk scale: undecided (+" in lowered.ours


def test_a_claim_that_was_not_run_at_the_larger_scale_counts_at_the_smaller():
    quick = adjust_report()
    bare = [Record.of({**row.content, "scale": "desk"}) for row in quick.results if row.factors["place"] == "none"]
    reports = [quick, ExperimentReport(LI, ADJUST, "desk", Results(bare))]
    assert {finding.report.scale for finding in findings(reports) if finding.verdict.holds != "not run"} == {"quick"}


def test_coverage_counts_the_papers_own_claims():
    own = [claim for experiment in LI.experiments for claim in experiment.claims if not claim.is_ours]
    left_out = len(LI.left_out)
    (line,) = coverage([adjust_report()])
    assert line == f"li2018: {len(own) + left_out} claims in the paper, {len(own)} encoded, 1 run, 1 hold"


def test_figures_that_older_records_lack_are_left_empty_and_decide_nothing():
    report = adjust_report()
    cells = dict(zip(report.headings, report.rows[1], strict=True))
    assert cells["mean kept %"] == cells["masks %"] == ""
    found = {verdict.claim.text: verdict.holds for verdict in report.verdicts}
    assert found["With dropout (a), keeping the mean over masks lowers it more than adjusted statistics (ours)."] == (
        "not run"
    )


def test_minutes_are_those_of_a_training():
    cells = dict(zip(adjust_report().headings, adjust_report().rows[1], strict=True))
    assert cells["minutes"] == "0.0" and "minutes" not in moments_report().headings


def test_the_text_shows_all_rows_and_all_verdicts():
    from evenkeel.output.tables import plain

    text = plain(adjust_report(), width=200)
    assert "li2018/adjust: Table 3, quick scale, 6 runs" in text and "cifar10-wrn-a-0.5" in text
    assert all(verdict.ours in text for verdict in adjust_report().verdicts)


def test_the_page_holds_tables_and_drawings_and_asks_for_nothing_else():
    pytest.importorskip("matplotlib")
    page = to_html([moments_report(), adjust_report()])
    assert page.count("<svg") == 2 and "cifar10-wrn-a-0.5" in page and "31.00 ± 1" in page
    assert not re.findall(
        r"""(?:src|href)=["'](?!#|https://arxiv\.org)[^"']*""", re.sub(r"(?s)<svg.*?</svg>", "", page)
    )
    assert "<script" not in page


def test_what_lies_in_a_folder_is_read_by_experiment_and_scale(tmp_path):
    folder = tmp_path / PAPER.name / MOMENTS.name
    folder.mkdir(parents=True)
    for factors in MOMENTS.arms["full"]:
        write_json(folder / f"{arm_name(factors)}-0.json", content(PAPER, MOMENTS, factors, second=1.0))
    (report,) = read_reports(tmp_path, find("hendrycks2016"))
    assert report.folder == f"{tmp_path.name}/hendrycks2016/moments"
    assert (report.experiment, report.scale, len(report.results)) == (MOMENTS, "full", len(MOMENTS.arms["full"]))


def test_a_scale_may_have_a_folder_of_its_own(tmp_path):
    folder = tmp_path / "desk" / PAPER.name / MOMENTS.name
    folder.mkdir(parents=True)
    write_json(folder / "relu-0.json", content(PAPER, MOMENTS, {"activation": "relu"}, scale="desk", second=1.0))
    (report,) = read_reports(tmp_path, find("hendrycks2016"))
    assert (report.scale, report.folder) == ("desk", f"{tmp_path.name}/desk/hendrycks2016/moments")


def test_an_empty_folder_is_one_line_that_says_what_to_do(tmp_path):
    with pytest.raises(ek.EvenkeelError, match="evenkeel reproduce"):
        read_reports(tmp_path, find("li2018"))


def test_plots_lie_beside_the_runs(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / PAPER.name).mkdir()
    (path,) = moments_report().write_plots(tmp_path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["moments-bars.png", "moments-bars.svg"]
