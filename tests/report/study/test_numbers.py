"""Means over seeds, paired gains, their uncertainty, what is missing, and gradients."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from synthetic_table import results

from clca.report.study import numbers as study_numbers
from clca.report.study.gradients import gradients, read_steps
from clca.report.study.numbers import frontier, gain_summary, interval, over_seeds, paired_gains, setting_gains
from clca.report.study.state import failures, missing, mixed
from clca.study.results.table import make_table, write_table

NOTHING = results().iloc[:0]
AXES = {"reduction": ["none", "evit", "tome"], "arm": ["base", "clca"]}


def shuffled(table: pd.DataFrame, rng: int = 3) -> pd.DataFrame:
    return table.sample(frac=1, random_state=rng)


class TestOverSeeds:
    def test_mean_and_deviation_are_those_of_the_runs(self):
        table = results(seeds=(0, 1, 2, 5))
        rows = over_seeds(table)
        own = table[(table["reduction"] == "evit") & (table["keep_rate"] == 0.1) & (table["img_size"] == 64)]
        own = 100 * own.loc[own["arm"] == "clca", "top1"]
        row = rows[(rows["reduction"] == "evit") & (rows["keep_rate"] == 0.1) & (rows["img_size"] == 64)]
        row = row[row["arm"] == "clca"].iloc[0]
        assert row["top1_mean"] == pytest.approx(np.mean(own))
        assert row["top1_sd"] == pytest.approx(np.std(own, ddof=1))
        assert (row["top1_min"], row["top1_max"]) == (min(own), max(own))
        assert (row["n"], row["seeds"]) == (4, "0, 1, 2, 5")

    def test_one_seed_has_no_deviation(self):
        rows = over_seeds(results(seeds=(7,)))
        assert rows["top1_sd"].isna().all()
        assert set(rows["seeds"]) == {"7"}

    def test_axes_that_follow_from_the_columns_are_left_out_and_others_part_settings(self):
        table = results(reductions=("evit",), rates=(0.1,), sizes=(64,))
        twice = pd.concat([table.assign(**{"axis.recipe": label}) for label in ("plain", "medium")])
        assert not [name for name in over_seeds(table) if name.startswith("axis.")]
        rows = over_seeds(twice)
        assert [name for name in rows if name.startswith("axis.")] == ["axis.recipe"]
        assert len(rows) == 4
        assert (rows["n"] == 3).all()

    def test_modules_are_blank_where_they_do_not_bear_on_the_arm(self):
        rows = over_seeds(results(arms=("base", "cla", "clc", "clca"))).set_index("arm")
        assert rows.loc["base", ["num_clr", "clc_gap", "cla_width"]].isna().all(axis=None)
        assert rows.loc["cla", "num_clr"].isna().all()
        assert (rows.loc["cla", "cla_width"] == 2).all()
        assert (rows.loc["clc", "num_clr"] == 1).all()
        assert rows.loc["clc", "cla_width"].isna().all()
        assert (rows["variant"] == "").all()

    def test_only_finished_runs_count_and_the_pretraining_does_not(self):
        table = results(seeds=(0, 1))
        first = table.iloc[[0]].assign(run="f" * 16, top1=0.999)
        half = pd.concat([table, first.assign(state="failed"), first.assign(state="interrupted", top1=np.nan)])
        pretraining = first.assign(**{name: None for name in table if name.startswith("axis.")})
        expected = over_seeds(table)
        pd.testing.assert_frame_equal(over_seeds(half), expected)
        pd.testing.assert_frame_equal(over_seeds(pd.concat([half, pretraining])), expected)

    def test_the_order_of_the_runs_changes_nothing(self):
        table = results(arms=("base", "cla", "clca"))
        pd.testing.assert_frame_equal(over_seeds(shuffled(table)), over_seeds(table))

    @pytest.mark.parametrize(
        "table", [NOTHING, pd.DataFrame(), results().assign(state="failed", top1=np.nan), results()[["top1", "arm"]]]
    )
    def test_little_or_nothing_is_no_error(self, table):
        rows = over_seeds(table)
        assert {"top1_mean", "n", "published_top1", "data", "variant"} <= set(rows)
        assert len(rows) == (2 if list(table) == ["top1", "arm"] else 0)
        assert len(paired_gains(table[["top1"]] if "top1" in table else table)) == 0

    def test_the_table_of_a_study_and_its_file_give_the_same(self, tmp_path):
        plain = results(arms=("base", "cla", "clca"))
        rows = plain.to_dict("records")
        rows[3] |= {"state": "interrupted", "top1": None, "clc_gap": None, "num_clr": None, "finished_at": None}
        rows.append({"run": "f" * 16, "name": "weights", "state": "finished", "top1": 0.99, "arm": "base"})
        table = make_table(rows)
        write_table(tmp_path, rows)
        expected = over_seeds(plain.drop(index=3))
        expected = expected.drop(columns=["train_seconds", "computed_gmacs", "params"])
        for own in (table, pd.read_parquet(tmp_path / "results.parquet")):
            pd.testing.assert_frame_equal(over_seeds(own)[list(expected)], expected)
            pd.testing.assert_frame_equal(paired_gains(own), paired_gains(plain.drop(index=3)))
            found = missing({"total": len(plain), "axes": AXES}, own)
            assert (found.finished, found.interrupted) == (len(plain) - 1, 1)
            assert mixed(own) == []


class TestPairs:
    def test_every_pair_differs_in_the_arm_only(self):
        table = results(data=("leaves", "cotton80"))
        pairs = paired_gains(shuffled(table))
        assert len(pairs) == len(table) / 2
        by_run = table.set_index("run")
        for name in ("data", "backbone", "reduction", "keep_rate", "img_size", "seed"):
            mine, theirs = by_run.loc[pairs["run"], name], by_run.loc[pairs["run_against"], name]
            assert mine.tolist() == theirs.tolist()
        expected = 100 * (
            by_run.loc[pairs["run"], "top1"].to_numpy() - by_run.loc[pairs["run_against"], "top1"].to_numpy()
        )
        np.testing.assert_allclose(pairs["gain"], expected)
        pd.testing.assert_frame_equal(pairs, paired_gains(table))

    def test_one_base_stands_against_every_variant_of_the_modules(self):
        base = results(reductions=("evit",), rates=(0.1,), sizes=(64,))
        long = base[base["arm"] == "clca"].assign(num_clr=4, top1=0.9)
        long["run"] = "4" + long["run"].str[1:]
        table = pd.concat([base, long]).drop(columns="axis.arm")
        table["axis.variant"] = table["arm"].where(table["num_clr"] != 4, "4 carriers")
        pairs = paired_gains(table)
        assert pairs.groupby("variant").size().to_dict() == {"": 3, "4 carriers": 3}
        assert pairs["run_against"].nunique() == 3
        assert "axis.variant" not in pairs

    def test_two_axes_that_switch_the_modules(self):
        table = results(arms=("base", "cla", "clc", "clca")).drop(columns="axis.arm")
        table["axis.cla"] = np.where(table["arm"].isin(["cla", "clca"]), "on", "off")
        table["axis.clc"] = np.where(table["arm"].isin(["clc", "clca"]), "on", "off")
        pairs = paired_gains(table)
        assert len(pairs) == (table["arm"] == "clca").sum()
        assert not [name for name in pairs if name.startswith("axis.")]

    def test_another_recipe_is_not_the_same_setting(self):
        table = results(reductions=("evit",), rates=(0.1,), sizes=(64,))
        table = pd.concat([table.assign(**{"axis.recipe": label}) for label in ("plain", "medium")], ignore_index=True)
        table["run"] = [f"{number:016x}" for number in range(len(table))]
        recipe = table.set_index("run")["axis.recipe"]
        pairs = paired_gains(table)
        assert len(pairs) == 6
        assert recipe.loc[pairs["run"]].tolist() == recipe.loc[pairs["run_against"]].tolist()
        without = table[~((table["arm"] == "base") & (table["axis.recipe"] == "plain"))]
        assert set(paired_gains(without)["axis.recipe"]) == {"medium"}

    def test_another_recipe_is_not_the_same_setting_though_what_failed_leaves_one_to_an_arm(self):
        table = results(reductions=("evit",), rates=(0.1,), sizes=(64,))
        table = pd.concat([table.assign(**{"axis.lr": rate}) for rate in ("0.001", "0.0001")], ignore_index=True)
        lost = (table["axis.lr"] == "0.001") == (table["arm"] == "base")
        table.loc[lost, "state"], table.loc[lost, "top1"] = "failed", np.nan
        assert paired_gains(table).empty
        assert sorted(over_seeds(table)["axis.lr"]) == ["0.0001", "0.001"]

    def test_of_the_same_run_twice_the_later_counts(self):
        table = results(seeds=(0,))
        newer = table.assign(clca="0.2", top1=table["top1"] + 0.01, finished_at="2026-01-01T00:00:00")
        newer["run"] = "n" + newer["run"].str[1:]
        pairs = paired_gains(shuffled(pd.concat([table, newer])))
        assert len(pairs) == len(table) / 2
        assert pairs["run"].str.startswith("n").all()
        assert pairs["run_against"].str.startswith("n").all()

    @settings(max_examples=20, deadline=None)
    @given(kept=st.lists(st.booleans(), min_size=20, max_size=20), order=st.integers(0, 99))
    def test_a_half_finished_study_has_the_pairs_whose_two_runs_are_there(self, kept, order):
        whole = results(reductions=("evit",), rates=(0.5, 0.1), seeds=(0, 1, 2, 3, 4), sizes=(64,))
        table = whole[kept]
        places = table.groupby(["keep_rate", "seed"])["arm"].nunique()
        pairs = paired_gains(shuffled(table, order))
        assert len(pairs) == (places == 2).sum()
        assert pairs["run"].is_unique
        everything = paired_gains(whole).set_index("run")["gain"]
        assert everything.loc[pairs["run"]].tolist() == pairs["gain"].tolist()


class TestGains:
    def test_a_known_gain_lies_in_its_interval_and_lifts(self):
        inside = 0
        for rng in range(25):
            row = gain_summary(paired_gains(results(reductions=("evit", "tome", "topk"), between=0.02, rng=rng))).iloc[
                0
            ]
            inside += row["low"] <= 5 <= row["high"]
            assert (row["verdict"], row["unit"]) == ("lifts", "settings")
        assert inside >= 19  # of 12 settings a little below 95 %: 19 or fewer of 25 would be far out

    def test_seeds_of_one_setting_stay_together(self):
        """Doubling the seeds without new information must not make the interval narrower."""
        pairs = paired_gains(results(between=0.02))
        twice = pd.concat([pairs, pairs.assign(seed=pairs["seed"] + 10)])
        once, again = gain_summary(pairs).iloc[0], gain_summary(twice).iloc[0]
        assert again["pairs"] == 2 * once["pairs"]
        assert (again["low"], again["high"]) == pytest.approx((once["low"], once["high"]))

    @pytest.mark.parametrize(("count", "unit"), [(2, "runs"), (3, "settings")])
    def test_settings_are_resampled_where_there_are_three(self, count, unit):
        settings = pd.Series([f"setting {k}" for k in range(count) for _ in range(2)])
        assert interval(pd.Series(np.linspace(1, 2, 2 * count)), settings)[2] == unit

    def test_no_gain_is_no_clear_difference(self):
        rows = gain_summary(paired_gains(results(gain=0.0)))
        assert rows["verdict"].tolist() == ["no clear difference"]
        assert rows["sentence"].iloc[0].startswith("no clear difference between CLCA and base: mean gain ")

    def test_a_loss_lowers(self):
        row = gain_summary(paired_gains(results(gain=-0.05))).iloc[0]
        assert row["verdict"] == "lowers"
        assert "−5." in row["sentence"] or "−4." in row["sentence"]

    def test_the_sign_test_is_the_binomial_s(self):
        pairs = paired_gains(results()).iloc[:12].copy()
        pairs["gain"] = [1, 2, 3, 1, 2, 3, 4, -1, -2, 0, 0, 5.0]
        row = gain_summary(pairs).iloc[0]
        assert (row["wins"], row["ties"], row["losses"]) == (8, 2, 2)
        assert row["p"] == pytest.approx(2 * binom.cdf(2, 10, 0.5))
        assert row["mean"] == pytest.approx(1.5)
        assert row["median"] == pytest.approx(1.5)

    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_too_few_pairs_have_no_interval(self, count):
        row = gain_summary(paired_gains(results()).iloc[:count]).iloc[0]
        assert row["pairs"] == count
        assert np.isnan([row["low"], row["high"]]).all()
        assert row["verdict"] == "too few pairs"
        assert row["sentence"]
        assert np.isnan(row["p"]) == (count == 0)

    def test_five_pairs_cannot_tell(self):
        pairs = paired_gains(results(reductions=("evit",), rates=(0.1,), sizes=(64,), seeds=range(5)))
        row = gain_summary(pairs).iloc[0]
        assert row["p"] == 0.0625
        assert row["verdict"] == "too few pairs"
        assert row["unit"] == "runs"

    def test_six_pairs_can_tell(self):
        pairs = paired_gains(results(reductions=("evit",), rates=(0.1,), sizes=(64,), seeds=range(6)))
        row = gain_summary(pairs).iloc[0]
        assert row["p"] == 0.03125
        assert row["verdict"] == "lifts"

    @pytest.mark.parametrize("sign", [1, -1])
    def test_many_small_gains_and_a_few_large_losses_are_no_clear_difference(self, sign):
        pairs = paired_gains(results(seeds=range(8))).iloc[:40].copy()
        pairs["gain"] = sign * np.array([0.3] * 35 + [-2.0] * 5)
        row = gain_summary(pairs).iloc[0]
        assert row["p"] < 0.001
        assert row["low"] < 0 < row["high"]
        assert row["verdict"] == "no clear difference"

    def test_equal_gains_have_a_point_and_all_ties_no_p(self):
        pairs = paired_gains(results()).assign(gain=0.0)
        row = gain_summary(pairs).iloc[0]
        assert (row["low"], row["high"], row["ties"]) == (0, 0, len(pairs))
        assert np.isnan(row["p"])
        assert row["verdict"] == "no clear difference"

    def test_groups(self):
        pairs = paired_gains(results(sizes=(64,)))
        rows = gain_summary(pairs, ["reduction", "keep_rate"])
        assert rows["group"].tolist() == [
            "evit · keep 0.1", "evit · keep 0.5", "none · keep 1", "tome · keep 0.1", "tome · keep 0.5",
        ]  # fmt: skip
        assert rows["pairs"].sum() == len(pairs)
        assert len(gain_summary(pairs.iloc[:0], ["reduction"])) == 0
        pd.testing.assert_frame_equal(gain_summary(shuffled(pairs), ["reduction", "keep_rate"]), rows)

    def test_all_settings_at_once_are_each_alone(self):
        table = results(seeds=range(4))
        pairs = paired_gains(table[~((table["reduction"] == "evit") & (table["seed"] > 1))])
        rows = setting_gains(pairs)
        assert len(rows) == pairs["setting"].nunique()
        for name, row in rows.iterrows():
            own = pairs[pairs["setting"] == name]
            assert row["mean"] == pytest.approx(own["gain"].mean())
            low, high, _ = interval(own["gain"], own["setting"])
            np.testing.assert_allclose([row["low"], row["high"]], [low, high])
        assert rows["low"].isna().sum() == 4


class TestFrontier:
    @pytest.mark.parametrize("noise", [0.05, 0.0])  # without it many are equally accurate
    def test_nothing_beats_it_and_it_beats_the_rest(self, noise):
        rows = over_seeds(results(data=("a", "b"), noise=noise))
        best = frontier(results(data=("a", "b"), noise=noise))
        for (data, arm), own in rows.groupby(["data", "arm"]):
            front = best[(best["data"] == data) & (best["arm"] == arm)]
            assert front["gmacs"].is_monotonic_increasing
            assert front["top1_mean"].is_monotonic_increasing
            for row in own.itertuples():
                better = (own["gmacs"] <= row.gmacs) & (own["top1_mean"] > row.top1_mean)
                better |= (own["gmacs"] < row.gmacs) & (own["top1_mean"] >= row.top1_mean)
                there = (front["gmacs"] == row.gmacs) & (front["top1_mean"] == row.top1_mean)
                assert there.any() != better.any()

    def test_without_costs_there_is_none(self):
        assert len(frontier(results().drop(columns="gmacs"))) == 0
        assert len(frontier(NOTHING)) == 0


class TestState:
    def test_a_finished_study(self):
        table = results()
        found = missing({"total": len(table), "axes": AXES}, table)
        assert found.complete
        assert found.sentences == ["All 60 runs are finished."]

    def test_what_is_missing_is_counted_and_said(self):
        table = results()
        table.loc[0:2, "state"] = ["failed", "failed", "interrupted"]
        table = table[table["reduction"] != "tome"]
        counts = {"reduction": {"none": 12, "evit": 24, "tome": 24}, "arm": {"base": 30, "clca": 30}}
        found = missing({"total": 60, "axes": AXES, "planned": counts}, table)
        assert (found.finished, found.failed, found.interrupted, found.not_begun) == (33, 2, 1, 24)
        assert found.sentences[0] == (
            "27 of 60 runs are not finished: 2 failed, 1 begun and not finished, 24 not begun."
        )
        assert "Nothing is finished yet for reduction tome." in found.sentences
        assert "Further behind than the rest of reduction: none (9 of 12)." in found.sentences
        assert "3 runs with CLCA have no finished base run to compare with." in found.sentences
        rows = found.by_axis.set_index(["axis", "label"])
        assert rows.loc[("reduction", "tome")].tolist() == [24, 0, 0, 0, 24]
        assert rows.loc[("reduction", "none")].tolist() == [12, 9, 2, 1, 0]
        assert rows.loc[("arm", "clca"), "not_begun"] == 12

    def test_counts_of_a_full_grid_need_not_be_given(self):
        table = results(reductions=("evit", "tome"), rates=(0.1,), sizes=(64,))
        axes = {"reduction": ["evit", "tome"], "arm": ["base", "clca"]}
        assert set(missing({"total": 12, "axes": axes, "seeds": [0, 1, 2]}, table).by_axis["planned"]) == {6}
        assert missing({"total": 11, "axes": axes, "seeds": [0, 1, 2]}, table).by_axis["planned"].isna().all()

    @pytest.mark.parametrize("table", [NOTHING, pd.DataFrame()])
    def test_nothing_begun(self, table):
        found = missing({"total": 7, "axes": AXES}, table)
        assert found.not_begun == 7
        assert found.sentences == ["7 of 7 runs are not finished: 7 not begun."]

    def test_more_runs_than_asked_for(self):
        assert "more than the study asks for" in missing({"total": 3, "axes": {}}, results()).sentences[-1]

    def test_equal_versions_need_no_warning(self):
        assert mixed(results()) == []
        assert mixed(NOTHING) == []

    def test_mixed_versions_are_reported_with_the_pairs_they_split(self):
        table = results()
        table.loc[table["arm"] == "clca", "torch"] = "2.10"
        table.loc[table["seed"] == 0, "device"] = "cuda"
        assert mixed(table) == [
            "Not all runs have the version of torch in common: 2.10 (30 runs), 2.9 (30 runs); 30 of 30 pairs of CLCA "
            "and base differ in it.",
            "Not all runs have the device in common: cpu (40 runs), cuda (20 runs).",
        ]

    def test_failures_by_their_line(self):
        table = results()
        table["state"], table["error"] = "failed", "the loss is not finite"
        table.loc[0:7, "error"] = "no space left"
        table.loc[8, "error"] = None
        rows = failures(table)
        assert rows["n"].tolist() == [51, 8, 1]
        assert rows["error"].tolist()[1:] == ["no space left", "no reason was recorded"]
        assert rows["names"][1].endswith("and 3 more")
        assert len(failures(results())) == len(failures(pd.DataFrame())) == 0
        assert len(over_seeds(table)) == 0


class TestGradients:
    def write(self, folder, table, *, steps=20):
        for row in table.itertuples():
            run = folder / "runs" / row.name / "run"
            run.mkdir(parents=True)
            high = {"base": 4.0, "cla": 3.0, "clc": 2.0, "clca": 1.0}[row.arm]
            lines = [{"step": step, "grad_max": high * (1 + row.seed) + step / 100} for step in range(1, steps + 1)]
            lines += [{"epoch": 1, "step": steps, "train": {"loss": 1.0}}]
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def test_curves_are_medians_and_quartiles_over_runs(self, tmp_path):
        table = results(arms=("base", "cla", "clc", "clca"), reductions=("evit",), seeds=range(5))
        self.write(tmp_path, table)
        found = gradients(tmp_path, table)
        base = found.curves[found.curves["arm"] == "base"].set_index("step")
        assert base.index.tolist() == list(range(1, 21))
        np.testing.assert_allclose(base.loc[10, ["low", "median", "high"]].astype(float), [8.1, 12.1, 16.1])
        assert (found.curves["runs"] == 20).all()
        assert found.arms["arm"].tolist() == ["base", "cla", "clc", "clca"]
        assert (found.pairs["ratio_max"] == 4).all()
        assert (found.pairs["ratio_median"] == 2).all()
        assert (found.pairs["ratio_spike"] == 2).all()
        assert found.sentences[0].startswith("Base over CLCA, largest gradient of a training: 4.00 times")
        assert "20 of 20 pairs" in found.sentences[0]

    def test_many_runs_are_thinned_alike_in_every_arm_and_it_is_said(self, tmp_path):
        table = results()
        self.write(tmp_path, table)
        found = gradients(tmp_path, table, most=5)
        assert found.arms["runs"].tolist() == [5, 5]
        assert found.arms["finished"].tolist() == [30, 30]
        assert "5 of 30 of base, 5 of 30 of CLCA" in found.sentences[-1]
        pd.testing.assert_frame_equal(gradients(tmp_path, shuffled(table), most=5).curves, found.curves)

    def test_a_long_run_keeps_its_spikes(self, tmp_path):
        table = results(reductions=("evit",), rates=(0.1,), sizes=(64,), seeds=(0,))
        self.write(tmp_path, table, steps=1000)
        found = gradients(tmp_path, table, points=50)
        base = found.curves[found.curves["arm"] == "base"]
        assert len(base) <= 51
        assert base["median"].max() == pytest.approx(4 + 10)
        assert base["step"].between(1, 1010).all()

    def test_half_a_line_and_no_number_are_left_out(self, tmp_path):
        text = '{"step": 1, "grad_max": 2.0}\n{"step": 2, "grad_max": null}\n'
        text += '{"step": 3, "grad_max": NaN}\n[1, "grad_max"]\n'
        (tmp_path / "metrics.jsonl").write_text(text + '{"step": 1, "grad_max": 3.0}\n{"step": 4, "grad_max": 5')
        assert read_steps(tmp_path).to_dict() == {1: 3.0}
        assert read_steps(tmp_path / "absent") is None
        (tmp_path / "metrics.jsonl").write_text("")
        assert read_steps(tmp_path) is None

    def test_without_files_or_columns(self, tmp_path):
        table = results().drop(columns=["grad_max", "grad_median"])
        found = gradients(tmp_path, table)
        assert len(found.curves) == len(found.pairs) == 0
        assert found.arms["unreadable"].tolist() == [30, 30]
        assert "could not be read" in found.sentences[-1]
        empty = gradients(tmp_path, NOTHING)
        assert len(empty.arms) == len(empty.curves) == 0
        assert empty.sentences


def test_fewest_is_where_a_sign_test_can_first_tell():
    assert 2 * 0.5**study_numbers.FEWEST < 0.05 <= 2 * 0.5 ** (study_numbers.FEWEST - 1)
