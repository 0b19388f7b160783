"""Which channels of a model belong together, and which can be removed."""

from graphopt.analysis.channels.groups import Channels, Fold, Group, Kept, Member, Whole
from graphopt.analysis.channels.op import Contraction, Pick, SizeEdit, Use
from graphopt.analysis.channels.solver import channel_groups

__all__ = [
    "Channels",
    "Contraction",
    "Fold",
    "Group",
    "Kept",
    "Member",
    "Pick",
    "SizeEdit",
    "Use",
    "Whole",
    "channel_groups",
]
