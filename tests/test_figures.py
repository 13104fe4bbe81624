"""What pictures show of the numbers that they are given."""

import pytest
from matplotlib.collections import LineCollection, PathCollection

from nsm import figures


def test_calibration_says_how_sure_each_bin_is() -> None:
    counts = {3: 1.0, 3000: 0.9}
    bins = [
        {
            "low": place / 3,
            "high": (place + 1) / 3,
            "count": count,
            "probability": (place + 0.5) / 3,
            "frequency": share,
        }
        for place, (count, share) in enumerate([*counts.items(), (0, None)])
    ]
    figure = figures.calibration(bins, "calibration")
    above, below = figure.axes
    (whiskers,) = (each for each in above.collections if isinstance(each, LineCollection))
    (few, many) = (sorted(float(y) for y in segment[:, 1]) for segment in whiskers.get_segments())
    assert few == pytest.approx([0.4385, 1.0], abs=1e-3)  # Wilson, by hand: 3 / (3 + 1.96²)
    assert many == pytest.approx([0.8887, 0.9102], abs=1e-3)
    (points,) = (each for each in above.collections if isinstance(each, PathCollection))
    assert not points.get_clip_on()
    assert points.get_sizes()[0] < points.get_sizes()[1] / 10
    assert (above.get_legend(), below.get_legend()) == (None, None)
    assert len(figure.legends) == 1
