import re
from xml.etree import ElementTree

import pytest

from pipeline.show.mix_picture import HEIGHT, WIDTH, mix_picture

SHARES = [i / 10 for i in range(11)]


def test_the_picture_is_svg_that_stands_alone():
    drawn = mix_picture(SHARES, [0.9 + 0.01 * i * (1 - i / 10) for i in range(11)], chosen=0.5)
    root = ElementTree.fromstring(drawn)
    assert root.tag.endswith("svg") and "href" not in drawn and "<script" not in drawn
    assert "chosen 0.5, 92.5 %" in drawn


@pytest.mark.parametrize("values", [[0.9] * 11, [i / 10 for i in range(11)]])
def test_every_point_lies_within_the_picture_and_higher_is_better(values):
    drawn = mix_picture(SHARES, values, chosen=1.0)
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', drawn)[1].split()]
    assert len(points) == 11
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
