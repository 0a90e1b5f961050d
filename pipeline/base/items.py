"""The words for an image's split and state, and the numbers that files hold for them."""

SPLITS = ("none", "train", "val", "test")
"""Names of the splits; the index is the number that the cache stores (uint8)."""

NONE, TRAIN, VAL, TEST = range(4)

ROW_COLUMNS = ("id", "label", "class", "split")
"""The first columns of a table of rows, as `pipeline rows` writes it; the label is the class's number."""

ITEM_STATES = {"pending": 0, "good": 1, "unreadable": 2, "truncated": 3, "too_large": 4, "vanished": 5}
PENDING, GOOD = ITEM_STATES["pending"], ITEM_STATES["good"]
STATE_NAMES = {number: name for name, number in ITEM_STATES.items()}
