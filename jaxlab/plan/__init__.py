"""What a training step needs before there are chips: memory, time, money.

flag      a mesh, as the command takes it
parse     a topology's name -> chips and how they are wired
Shape     what a step computes, as numbers
estimate  shape, topology, mesh -> Plan, by arithmetic: no jax, under a second
best      the plans that fit, best first
remedies  what would make a plan fit
"""

from jaxlab.plan.arithmetic import Plan, estimate, warnings
from jaxlab.plan.search import best, remedies
from jaxlab.plan.shape import Passes, Shape
from jaxlab.plan.topology import CHIPS, Topology, flag, parse

__all__ = [
    "CHIPS",
    "Passes",
    "Plan",
    "Shape",
    "Topology",
    "best",
    "estimate",
    "flag",
    "parse",
    "remedies",
    "warnings",
]
