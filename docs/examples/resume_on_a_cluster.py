"""Train under a scheduler that ends jobs early: SIGTERM, queue again, resume, until it is done.

This program plays the scheduler on one machine. On a cluster the job script has the one command of
``JOB``, and the scheduler does the rest: see docs/cluster/slurm.sh.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

OUT = Path("runs/preempted")
JOB = [
    *(sys.executable, "-m", "jaxdqn", "run", "cartpole", "--stop-when", "never"),
    *("--out", str(OUT), "--resume"),  # starts the run, or resumes it
]


def trained_rows():
    """Return the rows of the newest line of metrics, 0 before the first."""
    file = OUT / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1])["rows"] if lines else 0


def run_job(rows):
    """Start the job; send SIGTERM when it has trained ``rows`` more. Return its exit code."""
    start = trained_rows()
    job = subprocess.Popen(JOB, stdout=subprocess.DEVNULL)
    while job.poll() is None and trained_rows() < start + rows:
        time.sleep(0.05)
    if job.poll() is None:
        job.send_signal(signal.SIGTERM)
    return job.wait()


attempts = 0
while True:
    attempts += 1
    code = run_job(rows=200_000)
    summary = json.loads((OUT / "summary.json").read_text())
    print(f"job {attempts}: exit code {code}, {summary['rows']:,} rows trained")
    if code or not summary["interrupted"]:
        break

events = [json.loads(line)["event"] for line in (OUT / "events.jsonl").read_text().splitlines()]
print("events:", ", ".join(dict.fromkeys(events)))
print("final return:", summary["eval_return_mean"])
