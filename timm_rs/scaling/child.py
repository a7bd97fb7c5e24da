"""What runs in each process of a pool: a program in Python, which stops when the process that started it has ended.

A driver that is killed cannot tell its runs. So each looks whether it is still there, and if not takes it for SIGTERM:
a run then saves itself and ends.
"""

import os
import runpy
import signal
import sys
import threading
import time


def main() -> None:
    """Run the program in the file of the second argument with those after it; the first is the id of the driver."""
    parent, *sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))  # as if it had been started itself
    threading.Thread(target=stop_after, args=(int(parent),), daemon=True).start()
    runpy.run_path(sys.argv[0], run_name='__main__')


def stop_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == '__main__':
    main()
