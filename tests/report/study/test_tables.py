"""The tables of a study, and the same table on the console, as CSV and as LaTeX."""

import re
import shutil
import subprocess
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from synthetic_table import results

from clca.errors import WorkError
from clca.report.study.gradients import gradients
from clca.report.study.numbers import over_seeds, paired_gains
from clca.report.study.tables import Column, ReportTable, results_table, study_tables, write_tables
from clca.report.table import tex, write_frame

DEIT3 = "deit3_base_patch16_224.fb_in1k"
STUDY = {"total": 60, "axes": {"reduction": ["none", "evit", "tome"], "arm": ["base", "clca"]}}


def main_table(table: pd.DataFrame, limit: int = 60) -> ReportTable:
    return results_table(over_seeds(table), paired_gains(table), limit=limit)


def cells(table: ReportTable, heading: str) -> list[str]:
    place = [column.heading for column in table.columns].index(heading)
    return [row[place] for row in table.rows]


def printed(table: ReportTable, width: int = 200) -> str:
    console = Console(file=StringIO(), width=width)
    table.render(console)
    return console.file.getvalue()


def small(**changed: object) -> ReportTable:
    frame = pd.DataFrame({"name": ["a_b & 50 %", "[red]x"], "top1": [86.4, np.nan]})
    columns = (Column("Name", align="left"), Column("top-1", "%"))
    rows = (("a_b & 50 %", "86.4 ± 1.2"), ("[red]x", ""))
    return ReportTable(
        **{"title": "A", "caption": "100 % of #1", "columns": columns, "rows": rows, "frame": frame, **changed}
    )


class TestResults:
    def test_arms_stand_side_by_side_with_gain_and_cost(self):
        table = results(arms=("base", "cla", "clc", "clca"))
        made = main_table(table)
        assert [column.heading for column in made.columns] == [
            "Reduction", "Keep rate", "Image", "base top-1 (%)", "CLA top-1 (%)", "CLC top-1 (%)", "CLCA top-1 (%)",
            "gain (points)", "95 % interval", "GMACs, base / CLCA",
        ]  # fmt: skip
        assert len(made.rows) == len(made.frame) == 10
        row = made.frame[(made.frame["reduction"] == "evit") & (made.frame["keep_rate"] == 0.1)].iloc[0]
        own = table[(table["reduction"] == "evit") & (table["keep_rate"] == 0.1) & (table["img_size"] == 64)]
        tops = 100 * own.groupby("arm")["top1"].mean()
        assert row["clca_top1"] == pytest.approx(tops["clca"])
        assert row["gain"] == pytest.approx(tops["clca"] - tops["base"])
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]
        assert "(n = 3)" in made.caption
        assert "leaves, vit_tiny" in made.caption

    def test_no_reduction_first_then_rates_from_high_to_low(self):
        made = main_table(results(sizes=(64,)))
        assert cells(made, "Reduction") == ["none", "evit", "evit", "tome", "tome"]
        assert cells(made, "Keep rate") == ["1", "0.5", "0.1", "0.5", "0.1"]
        assert "64 px" in made.caption

    def test_published_numbers_stand_beside(self):
        table = results(data=("cotton80", "soygene"), backbones=(DEIT3,), reductions=("evit",), sizes=(448,))
        made = main_table(table)
        frame = made.frame.set_index(["data", "keep_rate"])
        assert frame.loc[("cotton80", 0.1), "clca_published"] == 55.6
        assert np.isnan(frame.loc[("cotton80", 0.5), "clca_published"])
        ours = frame.loc[("soygene", 0.1)]
        assert ours["base_difference"] == pytest.approx(ours["base_top1"] - 56)
        shown = cells(made, "base published (difference)")
        assert sum(text.startswith("≈56.0 (−") for text in shown) == 1
        assert "does not name the backbone" in made.caption

    def test_where_runs_are_missing_each_cell_says_of_how_many_it_is(self):
        table = results(sizes=(64,)).iloc[1:]
        made = main_table(table)
        assert cells(made, "base top-1 (%)")[0].endswith("(2)")
        assert cells(made, "95 % interval")[0] == ""
        assert cells(made, "95 % interval")[1] != ""
        assert "in brackets the number of runs" in made.caption

    def test_of_too_many_rows_those_with_published_numbers_come_first(self):
        table = results(data=("leaves", "soygene"), backbones=(DEIT3,), reductions=("evit",), sizes=(64, 448))
        made = main_table(table, limit=3)
        assert len(made.rows) == 3
        assert made.left_out == 5
        assert len(made.frame) == 8
        assert sum("≈" in text for text in cells(made, "CLCA published (difference)")) == 1
        assert "5 more rows in the CSV" in made.note

    def test_a_base_model_stands_beside_every_variant_and_no_run_is_left_out(self):
        table = results(arms=("base", "cla", "clc", "clca"), reductions=("evit",), rates=(0.1,), sizes=(64,))
        lead = table[table["arm"] == "clca"]
        more = [lead.assign(num_clr=4), lead.assign(cla_width=4), table[table["arm"] == "cla"].assign(cla_width=1)]
        whole = pd.concat([table, *more], ignore_index=True)
        whole["run"] = [f"{number:016x}" for number in range(len(whole))]
        whole = whole.drop(columns="axis.arm")
        made = main_table(whole)
        assert set(cells(made, "Modules")) == {"default", "4 carriers", "head width 4", "head width 1"}
        base = cells(made, "base top-1 (%)")
        assert len(set(base)) == 1
        assert base[0]
        by_variant = made.frame.set_index("variant")
        assert np.isnan(by_variant.loc["head width 4", "cla_top1"])
        assert by_variant.loc["4 carriers", "cla_top1"] == by_variant.loc["", "cla_top1"]
        means = over_seeds(whole)
        for arm in ("base", "cla", "clc", "clca"):
            shown = set(made.frame[f"{arm}_top1"].dropna())
            assert shown == set(means.loc[means["arm"] == arm, "top1_mean"])

    def test_one_arm_alone_has_no_gain(self):
        made = main_table(results(arms=("clca",)))
        assert "gain (points)" not in [column.heading for column in made.columns]
        assert made.columns[-1].heading == "GMACs"

    def test_the_order_of_the_runs_changes_nothing(self):
        table = results(arms=("base", "clc", "clca"))
        again = main_table(table.sample(frac=1, random_state=1))
        assert again.rows == main_table(table).rows


class TestAll:
    def test_names_and_nothing_empty(self, tmp_path):
        table = results(data=("soygene",), arms=("base", "cla", "clc", "clca"))
        table.loc[0, ["state", "error"]] = ["failed", "no space left"]
        made = study_tables(STUDY, table, gradients(tmp_path, table))
        assert list(made) == [
            "results", "gains", "gains_by_keep_rate", "frontier", "published", "gradients", "progress", "failures",
        ]  # fmt: skip
        for one in made.values():
            assert one.rows
            assert len(one.rows) + one.left_out == len(one.frame)
            assert one.title in printed(one)
        assert {"CLCA", "CLA", "CLC"} == set(cells(made["gains"], "Arm"))
        assert cells(made["progress"], "finished")[0] == "119"
        methods = cells(made["published"], "Method")
        assert {"TransFG", "CLCA, best setting here"} <= set(methods)

    @pytest.mark.parametrize(
        "table", [results().iloc[:0], pd.DataFrame(), results().assign(state="interrupted", top1=np.nan)]
    )
    def test_a_study_without_results_says_so(self, table):
        made = study_tables(STUDY, table)
        assert list(made) == ["progress"]
        assert "60 of 60 runs are not finished" in made["progress"].caption

    def test_all_failed(self):
        made = study_tables(STUDY, results().assign(state="failed", top1=np.nan, error="it broke"))
        assert list(made) == ["progress", "failures"]
        assert made["failures"].rows[0][:2] == ("it broke", "60")

    def test_thousands_of_settings_show_few_and_keep_all(self, tmp_path):
        table = results(data=tuple("abcdefgh"), backbones=tuple("uvwxyz"), rates=(0.7, 0.5, 0.25, 0.1), seeds=(0,))
        made = study_tables({"total": len(table), "axes": {}}, table, limit=20)
        assert len(made["results"].rows) == 20
        write_tables(tmp_path, made)
        assert len(pd.read_csv(tmp_path / "results.csv")) == len(table) / 2 == 864


class TestTable:
    def test_cells_must_fit_the_columns(self):
        with pytest.raises(ValueError, match="2 cells"):
            small(rows=(("one",),))

    def test_the_console_takes_no_cell_for_a_command(self):
        text = printed(small(left_out=1200))
        assert "[red]x" in text
        assert "top-1 (%)" in text
        assert "1,200 more rows in the CSV." in text

    def test_latex_is_escaped(self):
        text = small().latex("tab:a")
        assert r"a\_b \& 50 \%" in text
        assert r"$86.4 \pm 1.2$" in text
        assert r"\caption[A]{100 \% of \#1}" in text
        assert r"\label{tab:a}" in text
        for rule in ("toprule", "midrule", "bottomrule"):
            assert text.count(rf"\{rule}") == 1

    def test_long_tables_go_over_pages_and_long_cells_wrap(self):
        many = small(rows=(("x" * 60, "1"),) * 50)
        assert r"\begin{longtable}{p{0.4\linewidth}r}" in many.latex()
        assert r"\begin{table}[htbp]" in small().latex()

    def test_text_is_harmless_in_a_spreadsheet_and_numbers_stay_numbers(self, tmp_path):
        frame = pd.DataFrame({"=name": ["-x", "@赤霞珠", None], "gain": [-0.1, float("nan"), 1e-07]})
        frame["count"] = pd.array([-3, None, 5], dtype="Int64")
        frame["fits"] = [True, False, True]
        write_frame(tmp_path / "t.csv", frame)
        assert (tmp_path / "t.csv").read_text("utf-8").splitlines() == [
            "\ufeff'=name,gain,count,fits", "'-x,-0.1,-3,True", "'@赤霞珠,,,False", ",1e-07,5,True"
        ]  # fmt: skip

    @pytest.mark.parametrize(("name", "fonts"), [("Rosé", "T1"), ("赤霞珠", "XeLaTeX"), ("Κάβα", "XeLaTeX")])
    def test_other_alphabets_stay_and_the_table_names_what_it_needs(self, tmp_path, name, fonts):
        rows = ((name, "86.4 ± 1.2"),)
        write_tables(tmp_path, {"a": small(rows=rows)})
        text = (tmp_path / "a.tex").read_text("utf-8")
        assert f"{name} & $86.4 \\pm 1.2$ \\\\" in text
        assert "?" not in text
        assert fonts in text.splitlines()[0]

    @pytest.mark.parametrize(
        ("plain", "latex"),
        [
            ("86.4 ± 1.2", r"$86.4 \pm 1.2$"),
            ("−0.3 ± 0.1 (3)", r"$-0.3 \pm 0.1$ (3)"),
            ("a_b\\{}~^", r"a\_b\textbackslash{}\{\}\textasciitilde{}\textasciicircum{}"),
            ("≈56.0 (−2.1)", r"$\approx$56.0 ($-$2.1)"),
            ("line\nbreak\tand \x00 more", "line break and  more"),
            ("日本 é", "日本 é"),
            ("赤霞珠_1 & Άλφα", r"赤霞珠\_1 \& Άλφα"),
            ("می\u200cخواهم \u202eabc\u202c \udce9", "می\u200cخواهم abc "),
            ("[Errno 28] full", "{}[Errno 28] full"),
            ("*", "{}*"),
            ("", ""),
        ],
    )
    def test_text_as_latex(self, plain, latex):
        assert tex(plain) == latex

    @given(st.text(max_size=40))
    def test_no_text_leaves_a_brace_or_a_formula_open(self, plain):
        text = re.sub(r"\\[\\{}&%$#_]", "", tex(plain).replace(r"\textbackslash{}", ""))
        assert text.count("{") == text.count("}")
        assert text.count("$") % 2 == 0
        assert not re.search(r"(?<!\\)[&%#_^~]", text)
        assert "\n" not in text

    def test_csv_gives_the_numbers_back(self, tmp_path):
        made = study_tables(STUDY, results())
        paths = write_tables(tmp_path / "tables", made)
        assert [path.name for path in paths] == [f"{name}{end}" for name in made for end in (".csv", ".tex")]
        for name, table in made.items():
            again = pd.read_csv(
                tmp_path / "tables" / f"{name}.csv", keep_default_na=False, na_values=[""], float_precision="round_trip"
            )
            assert list(again) == list(table.frame)
            for column in table.frame.select_dtypes("number"):
                theirs = table.frame[column].astype(float)
                np.testing.assert_array_equal(again[column].astype(float), theirs)
            text = table.frame.select_dtypes(exclude=["number", "bool", "boolean"])
            for column in text:
                mine = ["" if pd.isna(value) else str(value) for value in again[column]]
                assert mine == ["" if pd.isna(value) else str(value) for value in text[column]]

    def test_writing_again_replaces_and_a_failure_leaves_what_was_there(self, tmp_path):
        write_tables(tmp_path, {"a": small()})
        write_tables(tmp_path, {"a": small(title="B")})
        assert "[B]" in (tmp_path / "a.tex").read_text()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.tex"]
        with pytest.raises(WorkError, match="could not be made"):
            write_tables(tmp_path / "a.csv", {"a": small()})
        (tmp_path / "b.csv").mkdir()
        with pytest.raises(WorkError, match=r"b\.csv"):
            write_tables(tmp_path, {"b": small()})

    def test_latex_compiles_or_is_at_least_balanced(self, tmp_path):
        made = {**study_tables(STUDY, results(arms=("base", "cla", "clc", "clca"))), "odd": small()}
        body = "\n".join(table.latex(f"tab:{name}") for name, table in made.items())
        for kind in ("table", "longtable", "tabular"):
            assert body.count(rf"\begin{{{kind}}}") == body.count(rf"\end{{{kind}}}")
        unescaped = re.sub(r"\\[{}]", "", body)
        assert unescaped.count("{") == unescaped.count("}")
        for table in made.values():
            rows = [line for line in table.latex().splitlines() if line.endswith(r"\\")]
            assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {len(table.columns) - 1}
        if shutil.which("pdflatex"):
            head = r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage[T1]{fontenc}"
            head += r"\usepackage{booktabs,longtable}\begin{document}"
            (tmp_path / "all.tex").write_text(f"{head}\n{body}\n\\end{{document}}\n")
            command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-2000:]
