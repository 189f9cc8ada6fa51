"""Natural expansion: one score decides when, where and what to grow."""

from auxin.expansion.proposals import Proposal, make_proposals
from auxin.expansion.score import Score, Settings, expansion_score
from auxin.expansion.scoring import score_proposals
from auxin.expansion.trigger import Natural

__all__ = ["Natural", "Proposal", "Score", "Settings", "expansion_score", "make_proposals", "score_proposals"]
