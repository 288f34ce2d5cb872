"""A stand-in for gcloud: records its calls, and represents TPU VMs by folders.

Worker N of the VM has the home folder workers/N; bash runs ssh commands there.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(os.environ["CLOUD"])


def flag(name, default=""):
    values = [a.split("=", 1)[1] for a in sys.argv if a.startswith(f"--{name}=")]
    return values[-1] if values else default


def homes():
    there = sorted((ROOT / "workers").glob("*"), key=lambda home: int(home.name))
    worker = flag("worker", "0")
    return there if worker == "all" else [there[int(worker)]]


def next_line(name):
    """Returns the first line of a file, and removes it unless it is the last."""
    lines = (ROOT / name).read_text().splitlines()
    (ROOT / name).write_text("\n".join(lines[1:] or lines))
    return lines[0]


def create():
    if (ROOT / "capacity").exists() and next_line("capacity") == "none":
        print("ERROR: (gcloud) There is no more capacity in the zone", file=sys.stderr)
        return 1
    for number in range(int((ROOT / "size").read_text())):
        (ROOT / "workers" / str(number)).mkdir(parents=True)
    return 0


def delete():
    shutil.rmtree(ROOT / "workers", ignore_errors=True)
    return 0


def describe(kind):
    if flag("format") == "value(networkEndpoints.len())":
        if (ROOT / "endpoints").exists() and next_line("endpoints") == "UNAVAILABLE":
            print("ERROR: (gcloud) UNAVAILABLE: try again", file=sys.stderr)
            return 1
        print(len(list((ROOT / "workers").glob("*"))))
        return 0
    state = next_line(kind)
    if state == "-":
        state = "READY" if (ROOT / "workers").exists() else "MISSING"
    if state == "MISSING":
        print(f"ERROR: (gcloud.{kind}.describe) NOT_FOUND: not found", file=sys.stderr)
        return 1
    if state == "DENIED":
        print("ERROR: (gcloud) PERMISSION_DENIED: no access", file=sys.stderr)
        return 1
    print(state)
    return 0


def ssh():
    codes = [
        subprocess.run(
            ["bash", "-c", flag("command")], cwd=home, env={**os.environ, "HOME": str(home)}
        ).returncode
        for home in homes()
    ]
    return max(codes)


def scp(source, target):
    for home in homes():
        if ":" in source:
            shutil.copy(home / source.split(":", 1)[1], target)
        else:
            shutil.copy(source, home / target.split(":", 1)[1])
    return 0


def main(arguments):
    with (ROOT / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(["gcloud", *arguments]) + "\n")
    if (ROOT / "record_only").exists():
        return 0
    if arguments[0] == "storage":
        return 0
    kind, verb = arguments[2:4]
    if verb == "describe":
        return describe(kind)
    if verb == "scp":
        return scp(*arguments[4:6])
    return {"create": create, "delete": delete, "ssh": ssh}[verb]()


sys.exit(main(sys.argv[1:]))
