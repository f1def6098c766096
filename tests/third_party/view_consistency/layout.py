"""A data set that sfda does not know: where its files lie is one row."""

from sfda.data.label_spaces import CITYSCAPES19
from sfda.data.layouts import Layout

FRAMES = Layout(
    images="leftImg8bit/{split}/<day>/*_leftImg8bit",
    labels="gtFine/{split}/<day>/*_gtFine_labelIds",
    classes=CITYSCAPES19,
)
