"""The embedded town: rendered driving scenes with all Cityscapes classes, in three domains.

No data set of the field can be downloaded without a registration; the town stands in for them, so that every method
can be run, compared and tested on any machine. It is written in the layouts of the real data sets.
"""

from sfda.town.town import render
from sfda.town.write import write_streets

__all__ = ["render", "write_streets"]
