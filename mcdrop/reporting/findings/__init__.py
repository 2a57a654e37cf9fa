"""What an expert would say about a network: findings, each by a rule of its own, all in one table.

`judge` applies every rule of `KINDS` to what is known of a network. A rule stands below its row of the table (code,
severity, title, source, what to do) and says where and why. To add one, write it in the module of its topic, with its
line in the README, a network that triggers it and a near miss that does not.
"""

from mcdrop.reporting.findings import layout, network, rates
from mcdrop.reporting.findings.table import KINDS, Evidence, Finding, Kind, Place, Severity, judge

__all__ = ["KINDS", "Evidence", "Finding", "Kind", "Place", "Severity", "judge", "layout", "network", "rates"]
