"""Show what is installed, the state of every adapter, and whether the published shapes are built right here."""

from __future__ import annotations

import argparse
import json

from zamba_compat.operations.doctor import Report, report

EXAMPLES = """
  zamba-compat doctor
  zamba-compat doctor --check OWNER/NAME
  zamba-compat doctor --all
  zamba-compat doctor --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the whole report as JSON")
    parser.add_argument(
        "--check", metavar="CHECKPOINT", help="also load a checkpoint and compare what the model holds with its files"
    )
    parser.add_argument("--all", action="store_true", help="also list the adapters that are not needed here")


def run(options: argparse.Namespace) -> int:
    found = report(options.check)
    print(json.dumps(found.as_dict(), indent=2) if options.json else text(found, everything=options.all))
    return 0 if found.ok else 1


def text(found: Report, *, everything: bool = False) -> str:
    lines = [verdict.sentence() for verdict in found.verdicts]
    lines.append("installed")
    lines += [f"  {name:<16} {version or '-'}" for name, version in found.versions.items()]
    lines.append(f"  {'loops in C':<16} {found.native or '- (PyTorch computes everything)'}")
    lines.append("adapters")
    shown = [a for a in found.adapters if everything or a.state != "not needed"]
    for adapter in shown:
        lines.append(f"  {adapter.state:<10} {adapter.name:<28} {adapter.requires}")
        lines.append(f"  {'':<10} {adapter.summary}")
        if adapter.reason:
            lines.append(f"  {'':<10} {adapter.reason}")
        lines.append(f"  {'':<10} upstream: {adapter.upstream}")
    if len(shown) < len(found.adapters):
        lines.append(f"  {len(found.adapters) - len(shown)} more are not needed here (--all lists them)")
    lines.append("published shapes, built on the meta device")
    for check in found.checks:
        count = "" if check.parameters is None else f"{check.parameters:,} parameters"
        lines.append(f"  {check.shape:<6} {'right' if check.fault is None else 'WRONG'}  {check.fault or count}")
    lines += [f"fault: {fault}" for fault in found.faults] or ["no faults found"]
    return "\n".join(lines)
