"""What CURVE keys cost a message on loopback: median seconds, and processor time of both ends together.

python bench/key_cost.py
"""

from __future__ import annotations

import statistics
import time

import zmq

from edgedi.bench.testbed.price import use_keys

SIZES_BYTES = (1_000, 14_000, 100_000, 600_000, 4_000_000)


def measure(size_bytes: int, *, keys: bool) -> tuple[float, float]:
    """(median seconds, processor seconds) of a message from one socket to another."""
    num_messages = max(20, min(300, 40_000_000 // size_bytes))
    with zmq.Context() as context, context.socket(zmq.ROUTER) as server, context.socket(zmq.DEALER) as client:
        if keys:
            use_keys(server, client)
        port = server.bind_to_random_port("tcp://127.0.0.1")
        client.connect(f"tcp://127.0.0.1:{port}")
        payload, taken = bytes(size_bytes), []
        client.send(b"")
        server.recv_multipart()
        used_s = time.process_time()
        for _ in range(num_messages):
            started_s = time.perf_counter()
            client.send(payload, copy=False)
            server.recv_multipart(copy=False)
            taken.append(time.perf_counter() - started_s)
        return statistics.median(taken), (time.process_time() - used_s) / num_messages


def main() -> None:
    print(f"libzmq {zmq.zmq_version()}; microseconds per message")
    print(f"{'bytes':>10} {'open':>8} {'cpu':>8} {'keys':>8} {'cpu':>8}")
    for size_bytes in SIZES_BYTES:
        values = [1e6 * value for keys in (False, True) for value in measure(size_bytes, keys=keys)]
        print(f"{size_bytes:>10} " + " ".join(f"{value:8.0f}" for value in values))


if __name__ == "__main__":
    main()
