#!/usr/bin/env python3
"""How long `pipe pull` takes for 1,000 results from a server some milliseconds away.

    cargo build --release --no-default-features
    python3 benches/remote.py target/release/pipe

The results are made here and pushed to a folder; that folder is then served as a bucket (GET and HEAD), every answer
held back by --delays, all of them side by side. What the network would take of the time is `curl` for one blob after the
other on one connection without delay, beside it.
"""

import argparse
import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


class Bucket:
    """Serves `folder` as bucket `b`, each answer `delay` seconds late. Counts requests and connections."""

    def __init__(self, folder, delay):
        self.folder, self.delay, self.requests, self.connections = folder, delay, 0, 0
        self.loop = asyncio.new_event_loop()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        ready = threading.Event()

        def serve():
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(asyncio.start_server(self.client, "127.0.0.1", self.port, backlog=2048))
            ready.set()
            self.loop.run_forever()

        threading.Thread(target=serve, daemon=True).start()
        ready.wait()

    async def client(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                method, target, _ = head.split(b" ", 2)
                path = self.folder / target.decode().split("?")[0].removeprefix("/b/")
                await asyncio.sleep(self.delay)
                try:
                    body = path.read_bytes()
                    status = b"200 OK"
                except FileNotFoundError:
                    body, status = b"<Error><Code>NoSuchKey</Code></Error>", b"404 Not Found"
                head = b"HTTP/1.1 " + status + b"\r\nETag: \"x\"\r\nLast-Modified: Wed, 25 Nov 2026 10:00:00 GMT\r\n"
                head += b"Content-Length: %d\r\n\r\n" % len(body)
                writer.write(head if method == b"HEAD" else head + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def timed(argv, cwd, env=None):
    start = time.perf_counter()
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{argv} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start, done.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipe", type=os.path.abspath)
    parser.add_argument("--results", type=int, default=1000)
    parser.add_argument("--kib", type=int, default=100, help="size of each result")
    parser.add_argument("--delays", type=float, nargs="+", default=[0, 20, 100], help="milliseconds")
    parser.add_argument("--dir", default=None)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pipe-remote-", dir=args.dir))
    try:
        numbers = list(range(args.results))
        script = f"yes ${{matrix.n}} | head -c {args.kib << 10} > $OUT/x"
        (folder / "p.toml").write_text(
            f'[stages.arm]\nkind = "command"\nargv = ["sh", "-c", "{script}"]\nmatrix = {{ n = {numbers} }}\n'
        )
        (folder / "remote").mkdir()
        timed([args.pipe, "run", "p.toml", "-q", "-j", "8"], folder)
        timed([args.pipe, "push", "p.toml", "--remote", f"file://{folder}/remote"], folder)
        print(f"{args.results} results of {args.kib} KiB, load {os.getloadavg()[0]:.1f}")
        bucket = Bucket(folder / "remote", 0)
        urls = [f"http://127.0.0.1:{bucket.port}/b/v1/blobs/{path.name}" for path in (folder / "remote/v1/blobs").iterdir()]
        (folder / "urls").write_text("".join(f'url = "{url}"\noutput = /dev/null\n' for url in urls))
        bare = timed(["curl", "-s", "-K", "urls"], folder)[0]
        print(f"curl, {len(urls)} blobs one after the other, no delay: {bare:.2f} s")
        print(f"from and to a folder: {timed([args.pipe, 'pull', 'p.toml', '--store', 'f', '--remote', f'file://{folder}/remote'], folder)[0]:.2f} s")
        for delay in args.delays:
            bucket = Bucket(folder / "remote", delay / 1e3)
            env = {**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{bucket.port}", "AWS_REGION": "x",
                   "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
            command = [args.pipe, "pull", "p.toml", "--store", f"s{delay}", "--remote", "s3://b"]
            seconds, said = timed(command, folder, env)
            assert f"fetched {args.results} results" in said, said
            print(f"pull, answers {delay:g} ms late: {seconds:.2f} s, {bucket.requests} requests on {bucket.connections} connections")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
