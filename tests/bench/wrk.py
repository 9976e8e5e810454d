"""A client that costs next to nothing: `wrk`, a C program (Debian's package has this name).

Requests of few tokens are answered so fast that a client in Python on the same cores takes as much
of them as the server does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

WRK = shutil.which("wrk")
"""Where it is; None without it."""

_SCRIPT = """\
local bodies, last = {}, 0
for line in io.lines("%(bodies)s") do bodies[#bodies + 1] = line end
request = function()
  last = last %% #bodies + 1
  return wrk.format("POST", "%(path)s", {["Content-Type"] = "application/json"}, bodies[last])
end
done = function(summary)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  io.output("%(found)s")
  io.write(string.format("[%%d, %%d, %%d]", summary.requests, summary.duration, failed))
  io.close()
end
"""


def requests_per_second(
    url: str, path: str, bodies: list[dict[str, object]], clients: int, seconds: int
) -> float:
    """Requests answered in a second by a server that `clients` ask, one request after the other,
    the bodies in turn. Raises RuntimeError when one is not answered with a 2xx status."""
    assert WRK is not None
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / name for name in ("bodies", "found", "script")}
        files["bodies"].write_text("".join(json.dumps(body) + "\n" for body in bodies))
        files["script"].write_text(_SCRIPT % ({"path": path} | files))
        subprocess.run(
            [WRK, "-t1", f"-c{clients}", f"-d{seconds}s", "-s", files["script"], url],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        requests, microseconds, failed = json.loads(files["found"].read_text())
    if failed or not requests:
        raise RuntimeError(f"{failed} of {requests} requests to {path} failed")
    return 1e6 * float(requests) / float(microseconds)
