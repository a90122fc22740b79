"""The label store. `from trivet.feedback.store import Store`; the database's libraries load with it."""

from trivet.feedback.store.records import (
    AddResult,
    ApiToken,
    Assignment,
    DisputedItem,
    Drift,
    Event,
    Invalid,
    Judgment,
    LabelerStatistics,
    LeaseLost,
    NotYours,
    Progress,
    ProjectSettings,
    Unavailable,
    User,
)
from trivet.feedback.store.store import Store

__all__ = [
    "AddResult", "ApiToken", "Assignment", "DisputedItem", "Drift", "Event", "Invalid", "Judgment",
    "LabelerStatistics", "LeaseLost", "NotYours", "Progress", "ProjectSettings", "Store", "Unavailable", "User",
]
