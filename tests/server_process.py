"""A `nibble serve` of one's own: started on a free port, watched, stopped, and its log read."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import httpx
import openai

ROOT = pathlib.Path(__file__).resolve().parent.parent
POCKET = ROOT / "models" / "pocket"
PATIENCE_S = 240  # sanitizers are slow

# A line of the log at level error, and what sanitizers write.
TROUBLE = re.compile(r"^\S+ error |Sanitizer|runtime error:|CHECK failed", re.MULTILINE)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, timeout_s=20):
    """The first true value of condition()."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.02)
    return value


class ServerProcess:
    def __init__(self, nibble, log, *arguments, environment=None):
        self.port = free_port()
        self.log_path = log
        command = [str(nibble), "serve", *map(str, arguments), "--port", str(self.port)]
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
            )
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self):
        def ready():
            assert self.process.poll() is None, f"{self.process.args} ended:\n{self.log()}"
            try:
                return self.http.get("/health").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(ready, PATIENCE_S)

    def log(self):
        return self.log_path.read_text(errors="replace")

    def warnings(self):
        return re.findall(r"^\S+ warning (.*)$", self.log(), re.MULTILINE)

    def openai(self, **options):
        """The client as the model card makes it."""
        return openai.OpenAI(
            base_url=f"http://localhost:{self.port}/v1", **{"api_key": "none", "max_retries": 0, **options}
        )

    def post(self, path, body, **options):
        """`body` as JSON, null too."""
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        return self.http.post(path, content=json.dumps(body), headers=headers, **options)

    def answer(self, path, body):
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        return response.json()

    def metrics(self):
        """{"name{labels}": value}, without the labels that every sample has."""
        text = self.http.get("/metrics").text
        samples = {}
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            name, value = line.rsplit(" ", 1)
            name = re.sub(r'(engine|model_name)="[^"]*",?', "", name).replace(",}", "}").replace("{}", "")
            assert name not in samples, f"{name} twice"
            samples[name] = float(value)
        return samples

    def is_idle(self):
        now = self.metrics()
        gauges = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        return all(now[name] == 0 for name in gauges)

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self):
        return self.process.wait(PATIENCE_S)

    def kill(self):
        self.http.close()
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM must end it, with status 0 and nothing bad in the log."""
        self.http.close()
        if self.process.poll() is None:
            self.signal()
        try:
            status = self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        trouble = TROUBLE.search(self.log())
        assert status == 0 and not trouble, f"status {status}, log:\n{self.log()[-8000:]}"
