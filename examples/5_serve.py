"""Serve a model on a free port, and use it with OpenAI's client and with the trace API."""

import subprocess
import sys

import httpx2
from openai import OpenAI

command = [sys.executable, "-m", "glassformer", "serve", "stories", "--port", "0"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    try:
        url = server.stdout.readline().split()[1]  # "ready: http://127.0.0.1:PORT    (Ctrl-C to stop)"

        client = OpenAI(base_url=f"{url}/v1", api_key="any")
        completion = client.completions.create(model="stories", prompt="One day", max_tokens=20, seed=1)
        print(completion.choices[0].text)

        trace = httpx2.post(f"{url}/v1/traces", json={"model": "stories", "prompt": "Once Max got a key."}).json()
        cell = httpx2.get(f"{url}/v1/traces/{trace['id']}/views/cell?layer=1&head=3&query=5&key=2").json()
        print(cell["receipt"])
    finally:
        server.terminate()
