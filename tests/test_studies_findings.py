"""Points, intervals and words: nothing is called better that the intervals do not tell apart."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from fusemix.data.latents import Latents
from fusemix.errors import DataError
from fusemix.studies.efficiency import PUBLISHED, own_cost, table
from fusemix.studies.findings import findings
from fusemix.studies.plan import FUSEMIX, PLAIN, Arm, make_plan
from fusemix.studies.points import Point, difference, gather, half_width
from fusemix.studies.trials import Trial
from test_studies_trials import paired


def point(study, variant, x, *values):
    return Point(study, variant, x, dict(enumerate(values)), {}, 1.0)


def verdicts(*points):
    return [found.verdict for found in findings(points)]


@pytest.mark.parametrize("count", [2, 3, 5, 11, 12, 40])
def test_the_interval_is_student_s(count):
    values = np.random.default_rng(count).normal(size=count).tolist()
    low, high = stats.t.interval(0.95, count - 1, np.mean(values), stats.sem(values))
    assert half_width(values) == pytest.approx((high - low) / 2, rel=2e-3)
    assert math.isnan(half_width(values[:1]))


def test_differences_are_taken_seed_by_seed():
    one, other = point("s", "a", 1, 10.0, 20.0, 30.0), point("s", "b", 1, 9.0, 19.1, 28.9)
    gap = difference(one, other)
    assert gap.mean == pytest.approx(1.0) and gap.sure  # though the points themselves overlap entirely
    assert str(gap) == "+1.0 ± 0.2"
    assert not difference(other, point("s", "b", 1, 9.0)).sure  # one seed in common


def test_gathering_keeps_failures_apart():
    arms = [Arm("batch", FUSEMIX, 64, Trial(10, seed)) for seed in range(3)]
    done = {
        arms[0].trial.key: {"R@1": 5.0, "seconds": 2.0},
        arms[2].trial.key: {"error": "the loss became nan"},
    }
    (got,) = gather(arms, done)
    assert got.values == {0: 5.0} and got.failed == {2: "the loss became nan"} and got.seconds == 2.0
    assert "1 fits failed." in verdicts(got)


def test_the_worth_of_more_pairs_follows_the_last_doubling():
    curve = [point("quantity", FUSEMIX, n, h - 0.1, h, h + 0.1) for n, h in ((1000, 5.0), (2000, 9.0), (8000, 15.0))]
    said = verdicts(*curve)
    assert said[0].startswith(f"1,000 more pairs are worth about {3 * math.log2(9 / 8):+.2f} R@1")


def test_a_curve_is_ahead_from_where_it_stays_ahead():
    ours = [
        point("quantity", FUSEMIX, n, *h) for n, h in ((100, (1, 1.1, 0.9)), (200, (5, 5.1, 5)), (400, (9, 9, 9.1)))
    ]
    plain = [point("quantity", PLAIN, n, *h) for n, h in ((100, (2, 2.1, 2)), (200, (5.1, 5, 5)), (400, (8, 8.1, 8)))]
    assert f"{FUSEMIX} is ahead of {PLAIN} from 400 pairs on, and behind it at 100." in verdicts(*ours, *plain)
    assert f"{FUSEMIX} is nowhere ahead of {PLAIN} beyond doubt, and behind it at 100." in verdicts(
        *ours[:2], *plain[:2]
    )


def test_diversity_is_told_in_pairs():
    curve = [point("quantity", FUSEMIX, n, h, h + 0.1, h - 0.1) for n, h in ((1000, 10.0), (2000, 12.0), (4000, 14.0))]
    uniform = point("diversity", "uniform", 1000, 10.0, 10.1, 9.9)
    diverse = point("diversity", "diversity on x", 1000, 12.0, 12.1, 11.9)
    found = "Choosing 1,000 pairs by diversity on x is worth as much as 1,000 more pairs chosen at random."
    assert found in verdicts(*curve, uniform, diverse)
    worse = point("diversity", "diversity on x", 1000, 8.0, 8.1, 7.9)
    assert any("nowhere better than at random beyond doubt, and worse at 1,000" in v for v in verdicts(uniform, worse))
    above = point("diversity", "diversity on x", 1000, 22.0, 22.1, 21.9)
    assert any("as much as more than 3,000 more pairs" in verdict for verdict in verdicts(*curve, uniform, above))


def test_what_stacks_is_better_than_both_parts():
    heights = {
        "none": (1, 1.1, 1), FUSEMIX: (3, 3.1, 3), "Gaussian noise": (2, 2, 2.1), "input dropout": (4, 4.1, 4),
        f"{FUSEMIX} + Gaussian noise": (5, 5, 5.1), f"{FUSEMIX} + input dropout": (3.5, 3.6, 3.5),
    }  # fmt: skip
    said = verdicts(*(point("augmentation", name, 100, *values) for name, values in heights.items()))
    assert f"What stacks beyond doubt: {FUSEMIX} + Gaussian noise." in said
    assert (
        f"Of the single augmentations {FUSEMIX} is ahead of Gaussian noise beyond doubt, and behind input dropout."
        in said
    )


def test_the_best_setting_names_those_that_are_as_good():
    said = verdicts(
        *(point("batch", FUSEMIX, x, *v) for x, v in ((64, (1, 2, 3)), (128, (2, 2, 3)), (256, (9, 9, 9.1))))
    )
    assert said == ["Batch size: best at 256, beyond doubt."]
    said = verdicts(point("depth", FUSEMIX, 0, 1, 2, 3), point("depth", FUSEMIX, 1, 2, 2, 3))
    assert said == ["Blocks per adapter: best at 1; 0 cannot be told from it."]


def test_one_seed_tells_nothing_apart():
    said = verdicts(point("source", "web", 10, 1.0), point("source", "human", 10, 9.0))
    assert said[0] == "human and web cannot be told apart (+8.0)." and "One seed alone" in said[-1]


def test_studies_share_the_fits_that_are_the_same():
    plan = make_plan(paired(2000).only("train"), None, [200, 800], 800, 3, None, "who", [])
    arms = plan.arms()
    assert len({arm.trial for arm in arms}) < len(arms)
    default = Trial(800, 0)
    assert {arm.study for arm in arms if arm.trial == default} >= {
        "quantity",
        "quality",
        "batch",
        "depth",
        "augmentation",
    }
    assert [arm.trial.seed for arm in arms] == sorted(arm.trial.seed for arm in arms)  # a first picture comes early
    assert {arm.variant for arm in arms if arm.study == "source"} == {"human", "web", "all of them"}
    for arm in arms:
        arm.trial.config()  # every variant is a setting that there is


def test_sizes_are_a_geometric_series_down_from_all():
    plan = make_plan(paired(4000).only("train"), None, None, None, 1, None, None, [])
    assert plan.sizes == (150, 600, 2400)
    assert all(b == 4 * a for a, b in pairwise(plan.sizes))
    assert plan.picked_sizes() == [150, 600]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"only": ["quantty"]}, "no study 'quantty'; found: quantity, .* did you mean 'quantity'"),
        ({"sizes": [100, 5000]}, "5,000 pairs cannot be trained on: there are 120"),
        ({"pairs": 1}, "1 pairs cannot be trained on"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"source": "whom"}, "no column 'whom' .* did you mean 'who'"),
        ({"only": ["encoders"]}, "name a second one"),
    ],
)
def test_what_there_is_not_is_refused(changes, words):
    asked = {
        "only": None,
        "sizes": None,
        "pairs": None,
        "seeds": 3,
        "steps": None,
        "source": None,
        "swaps": [],
        **changes,
    }
    with pytest.raises(DataError, match=words):
        make_plan(paired().only("train"), **asked)


def test_a_source_of_one_value_compares_nothing():
    latents = Latents.from_arrays(x=np.eye(30), y=np.eye(30))
    with pytest.raises(DataError, match="column 'row' has 30 values in the split train; a comparison takes 2 to 12"):
        make_plan(latents, None, None, None, 3, None, "row", [])


def test_the_cost_is_of_the_largest_fit_beside_published_ones():
    figures = {"flops": 2e12, "parameters": 5e6, "seconds": 36.0, "R@1 x->y": 1.0, "R@1 y->x": 3.0}
    done = [{**figures, "pairs": 100, "R@1": 9.0}, {**figures, "pairs": 200, "R@1": 2.0}, {"pairs": 900, "R@1": 5.0}]
    cost = own_cost(done, "1 CPU thread")
    assert cost.pairs == 200 and cost.device_hours == pytest.approx(0.01)
    rows = table(cost)
    assert rows[1][1:7] == ["5 M", "2 T", "200", "0.01", "1 CPU thread", "1.0 / 3.0"]
    assert len(rows) == 2 + len(PUBLISHED) and "not known" in rows[2]
    assert own_cost([], "") is None
