"""What distilled sets are good for and what they reveal: memories for continual learning, choosing
an architecture, attacks on privacy, and how far a mask turns the gradient.
"""

from ddpp.studies.auditing import Audit, Design, audit, read_audit
from ddpp.studies.choosing import Search, rank
from ddpp.studies.grids import Candidate, Grid, stratified
from ddpp.studies.ranking import Ranking
from ddpp.studies.remembering import class_tasks, read_memories, remember
from ddpp.studies.turning import turns

__all__ = [
    "Audit",
    "Candidate",
    "Design",
    "Grid",
    "Ranking",
    "Search",
    "audit",
    "class_tasks",
    "rank",
    "read_audit",
    "read_memories",
    "remember",
    "stratified",
    "turns",
]
