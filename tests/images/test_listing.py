"""What a listing says of what was left out."""

import pytest

from pipeline.images import skip_summary


@pytest.mark.parametrize(
    ("skipped", "said"),
    [
        ({}, ""),
        ({"hidden": []}, ""),
        ({"hidden": [b".a"]}, "1 skipped as hidden"),
        ({"not an image": [b"a.txt"], "hidden": [b".a", b".b"]}, "2 skipped as hidden, 1 as not an image"),
    ],
)
def test_skipped_files_are_counted_by_reason(skipped, said):
    assert skip_summary(skipped) == said
