# The Python side of code runs: started once in a sandbox by the engine (agent/code.rs), it forks an interpreter for each
# context, so that a new context does not pay Python's start. Lines of JSON come in on standard input and go out on
# standard output. All of it runs inside the sandbox and may be killed by what runs there; the engine expects that.
#
#   {"id", "op": "run", "context", "code" | "code_file", "env", "cwd"}  ->  {"id", "ok", "stdout", ...} or {"id", "file"}
#   {"id", "op": "interrupt" | "kill", "run"}   {"id", "op": "contexts"}   {"id", "op": "reset", "context"}
import ast
import base64
import builtins
import gc
import json
import linecache
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback

OUTPUT_BYTES_MAX = 1 << 20
TEXT_CHARS_MAX = 256 << 10
RICH_BYTES_MAX = 6 << 20
DISPLAYS_MAX = 64
LINE_BYTES_MAX = 96 << 10
CONTEXTS_MAX = 16
DIRECTORY = os.path.dirname(os.path.abspath(__file__))

METHODS = {
    "text/html": "_repr_html_",
    "text/markdown": "_repr_markdown_",
    "text/latex": "_repr_latex_",
    "image/svg+xml": "_repr_svg_",
    "image/png": "_repr_png_",
    "image/jpeg": "_repr_jpeg_",
    "application/json": "_repr_json_",
}
MAGIC = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))


def image_kind(data):
    return next((kind for magic, kind in MAGIC if data[: len(magic)] == magic), None)


def rich(value):
    """What there is to show of a value, by media type: text always, pictures as base64."""
    data = {}
    if isinstance(value, (bytes, bytearray)) and (kind := image_kind(bytes(value[:16]))):
        data[kind] = bytes(value)
    if not isinstance(value, type):
        bundle = getattr(value, "_repr_mimebundle_", None)
        if callable(bundle):
            try:
                made = bundle()
                data.update(made[0] if isinstance(made, tuple) else made)
            except Exception:
                pass
        for kind, name in METHODS.items():
            method = getattr(value, name, None)
            if kind in data or not callable(method):
                continue
            try:
                made = method()
            except Exception:
                continue
            made = made[0] if isinstance(made, tuple) else made
            if made is not None:
                data[kind] = made
    out = {"text/plain": text_of(value) if not data or "text/plain" not in data else str(data["text/plain"])}
    left = RICH_BYTES_MAX
    for kind, made in data.items():
        if kind == "text/plain":
            continue
        if isinstance(made, (bytes, bytearray)):
            made = base64.b64encode(made).decode()
        elif kind == "application/json":
            try:
                made = json.loads(json.dumps(made))
            except (TypeError, ValueError):
                continue
        else:
            made = str(made)
        size = len(made) if isinstance(made, str) else len(json.dumps(made))
        if size > left:
            out["text/plain"] += f"\n[{kind} of {size} bytes is too large to be shown]"
            continue
        left -= size
        out[str(kind)] = made
    return out


def text_of(value):
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__}: its repr failed: {error}>"
    return text if len(text) <= TEXT_CHARS_MAX else text[:TEXT_CHARS_MAX] + " [cut off]"


class Capture:
    """Takes what anything in this process group writes to a descriptor, so that no writer ever waits for long."""

    def __init__(self, target):
        self.read, write = os.pipe()
        os.set_blocking(self.read, False)
        os.dup2(write, target)
        os.close(write)
        self.parts, self.size, self.dropped = [], 0, 0

    def drain(self):
        while True:
            try:
                data = os.read(self.read, 65536)
            except (BlockingIOError, InterruptedError):
                return
            if not data:
                return
            room = OUTPUT_BYTES_MAX - self.size
            self.dropped += max(0, len(data) - room)
            if room > 0:
                self.parts.append(data[:room])
                self.size += len(self.parts[-1])

    def take(self):
        text, dropped = b"".join(self.parts).decode("utf-8", "replace"), self.dropped
        self.parts, self.size, self.dropped = [], 0, 0
        return text, dropped


class Interpreter:
    """One context: a process with a namespace of its own."""

    def __init__(self, channel):
        self.channel = channel
        self.lock = threading.Lock()
        self.null = os.open("/dev/null", os.O_RDWR)
        os.dup2(self.null, 0)
        self.captures = [Capture(1), Capture(2)]
        sys.stdin = open(0, closefd=False)
        sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        self.space = {"__name__": "__main__", "__builtins__": builtins, "__doc__": None}
        main = type(sys)("__main__")
        main.__dict__.update(self.space)
        self.space = main.__dict__
        sys.modules["__main__"] = main
        sys.argv = [""]
        sys.path[0] = ""
        self.displays, self.count, self.loop, self.running = [], 0, None, False
        builtins.display = self.display
        signal.signal(signal.SIGINT, self.interrupt)
        # Output keeps its order when a child writes too.
        sys.addaudithook(self.audit)
        threading.Thread(target=self.watch, daemon=True).start()

    def audit(self, event, _):
        if event in ("subprocess.Popen", "os.system", "os.fork", "os.posix_spawn"):
            self.flush()

    def interrupt(self, *_):
        if self.running:
            self.running = False
            raise KeyboardInterrupt

    def flush(self):
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass

    def watch(self):
        poll = selectors.DefaultSelector()
        for capture in self.captures:
            poll.register(capture.read, selectors.EVENT_READ, capture)
        while True:
            for key, _ in poll.select():
                with self.lock:
                    key.data.drain()

    def display(self, *values, **_):
        for value in values:
            if len(self.displays) < DISPLAYS_MAX:
                self.displays.append({"kind": "display", "data": rich(value)})

    def figures(self):
        plots = sys.modules.get("matplotlib.pyplot")
        if plots is None:
            return
        import io

        for number in plots.get_fignums():
            buffer = io.BytesIO()
            plots.figure(number).savefig(buffer, format="png", bbox_inches="tight")
            self.display(buffer.getvalue())
        plots.close("all")

    def compiled(self, code):
        name = f"<cell {self.count}>"
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        tree = ast.parse(code, name)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = compile(ast.Expression(tree.body.pop().value), name, "eval", flags)
        first = compile(tree, name, "exec", flags) if tree.body else None
        return first, last

    def evaluate(self, code):
        value = eval(code, self.space)
        if code.co_flags & 0x80:  # inspect.CO_COROUTINE
            import asyncio

            if self.loop is None:
                self.loop = asyncio.new_event_loop()
                asyncio.set_event_loop(self.loop)
            value = self.loop.run_until_complete(value)
        return value

    def run(self, request):
        self.count += 1
        began = time.monotonic()
        self.displays = []
        value = error = None
        self.running = True
        try:
            first, last = self.compiled(request["code"])
            if first is not None:
                self.evaluate(first)
            if last is not None:
                value = self.evaluate(last)
                if value is not None:
                    self.space["_"] = value
            self.figures()
            # A repr is the caller's code too, and may be interrupted.
            shown = None if value is None else rich(value)
            self.running = False
        except BaseException as caught:
            self.running = False
            shown = None
            error = self.told(caught)
        answer = {
            "ok": error is None,
            "result": shown and shown["text/plain"],
            "results": self.displays + ([{"kind": "result", "data": shown}] if shown else []),
            "error": error,
            "execution_count": self.count,
            "duration_ms": int((time.monotonic() - began) * 1000),
        }
        self.flush()
        with self.lock:
            for name, capture in zip(("stdout", "stderr"), self.captures):
                capture.drain()
                answer[name], dropped = capture.take()
                answer[name + "_dropped_bytes"] = dropped
        return answer

    def told(self, caught):
        """An error without the frames of this program; it is also written to standard error, as a terminal shows it."""
        frames = caught.__traceback__
        while frames is not None and not frames.tb_frame.f_code.co_filename.startswith("<cell"):
            frames = frames.tb_next
        try:
            lines = "".join(traceback.format_exception(type(caught), caught, frames))
            value = str(caught)
        except Exception:
            lines = value = type(caught).__name__ + "\n"
        lines = lines[:TEXT_CHARS_MAX]
        try:
            sys.stderr.write(lines)
        except Exception:
            os.write(2, lines.encode("utf-8", "replace"))
        return {"name": type(caught).__name__, "value": value[:TEXT_CHARS_MAX], "traceback": lines}

    def begin(self, request):
        """The first request of a context brings its surroundings."""
        os.environ.update(request.get("env") or {})
        os.environ.setdefault("MPLBACKEND", "Agg")
        try:
            os.chdir(request.get("cwd") or "/")
        except OSError:
            pass
        if "random" in sys.modules:
            sys.modules["random"].seed()

    def warm(self):
        """What a first run would do for the first time, done before anybody waits."""
        self.run({"code": "import sys\nprint(1, end='')\n1 + 1"})
        self.run({"code": "1 / 0"})
        self.space.clear()
        self.space.update({"__name__": "__main__", "__builtins__": builtins, "__doc__": None})
        self.count = 0

    def serve(self):
        self.warm()
        self.channel.sendall(b'{"ready": true}\n')
        lines = self.channel.makefile("rb")
        begun = False
        for line in lines:
            request = json.loads(line)
            if not begun:
                self.begin(request)
                begun = True
            try:
                if "code_file" in request:
                    with open(request["code_file"], encoding="utf-8") as file:
                        request["code"] = file.read()
                    os.unlink(request["code_file"])
                answer = self.run(request)
            except KeyboardInterrupt:
                answer = {"ok": False, "error": {"name": "KeyboardInterrupt", "value": "", "traceback": ""}}
            answer["id"] = request["id"]
            self.channel.sendall(packed(answer))
        os._exit(0)


def packed(answer):
    """A line; what is long goes into a file, since the log it travels through keeps a MiB."""
    line = json.dumps(answer).encode()
    if len(line) > LINE_BYTES_MAX:
        path = os.path.join(DIRECTORY, answer["id"] + ".out")
        with open(path, "wb") as file:
            file.write(line)
        line = json.dumps({"id": answer["id"], "file": path}).encode()
    return line + b"\n"


class Child:
    def __init__(self, pid, channel):
        self.pid, self.channel, self.context, self.run, self.buffer = pid, channel, None, None, b""

    def signal(self, number):
        try:
            os.killpg(self.pid, number)
        except OSError:
            pass


class Host:
    """Forks the contexts and passes lines between them and the engine. It runs no code of the user's."""

    def __init__(self):
        self.out = os.dup(1)
        os.set_inheritable(self.out, False)
        os.dup2(2, 1)
        self.poll = selectors.DefaultSelector()
        self.poll.register(0, selectors.EVENT_READ, None)
        self.children, self.spare, self.input = [], None, b""

    def fork(self):
        ours, theirs = socket.socketpair()
        gc.freeze()
        pid = os.fork()
        if pid == 0:
            try:
                os.setpgid(0, 0)
                self.poll.close()
                ours.close()
                os.close(self.out)
                for child in self.children:
                    child.channel.close()
                Interpreter(theirs).serve()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(70)
        theirs.close()
        child = Child(pid, ours)
        self.children.append(child)
        self.poll.register(ours, selectors.EVENT_READ, child)
        return child

    def say(self, answer):
        self.write(packed(answer))

    def write(self, line):
        view = memoryview(line)
        while view:
            view = view[os.write(self.out, view) :]

    def named(self, context):
        return next((child for child in self.children if child.context == context), None)

    def run(self, request):
        child = self.named(request["context"])
        if child is None:
            if sum(child.context is not None for child in self.children) >= CONTEXTS_MAX:
                return self.say({"id": request["id"], "refused": "contexts", "max": CONTEXTS_MAX})
            child, self.spare = self.spare or self.fork(), None
            child.context = request["context"]
        if child.run is not None:
            return self.say({"id": request["id"], "refused": "busy"})
        child.run = request["id"]
        try:
            child.channel.sendall(json.dumps(request).encode() + b"\n")
        except OSError:
            self.lost(child)

    def lost(self, child):
        """A context's process is no more."""
        self.poll.unregister(child.channel)
        child.channel.close()
        self.children.remove(child)
        if child is self.spare:
            self.spare = None
        child.signal(signal.SIGKILL)
        _, status = os.waitpid(child.pid, 0)
        if child.run is not None:
            code = os.waitstatus_to_exitcode(status)
            self.say({"id": child.run, "died": code})

    def handle(self, request):
        op = request["op"]
        if op == "run":
            return self.run(request)
        if op in ("interrupt", "kill"):
            number = signal.SIGINT if op == "interrupt" else signal.SIGKILL
            for child in self.children:
                if child.run is not None and child.run == request["run"]:
                    child.signal(number)
        elif op == "contexts":
            names = [child.context for child in self.children if child.context is not None]
            self.say({"id": request["id"], "contexts": names})
        elif op == "reset":
            wanted = request.get("context")
            gone = [c for c in self.children if c.context is not None and wanted in (None, c.context)]
            for child in gone:
                child.signal(signal.SIGKILL)
                self.lost(child)
            self.say({"id": request["id"], "reset": [child.context for child in gone]})

    def read_child(self, child):
        try:
            data = child.channel.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            return self.lost(child)
        child.buffer += data
        *lines, child.buffer = child.buffer.split(b"\n")
        for line in lines:
            if child.context is not None and b'"ready"' not in line[:10]:
                child.run = None
            self.write(line + b"\n")

    def read_engine(self):
        data = os.read(0, 1 << 20)
        if not data:
            for child in self.children:
                child.signal(signal.SIGKILL)
            os._exit(0)
        self.input += data
        *lines, self.input = self.input.split(b"\n")
        for line in lines:
            try:
                self.handle(json.loads(line))
            except (ValueError, KeyError):
                continue

    def serve(self):
        self.spare = self.fork()
        while True:
            for key, _ in self.poll.select():
                if key.data is None:
                    self.read_engine()
                else:
                    self.read_child(key.data)
            idle = all(child.run is None for child in self.children)
            if self.spare is None and idle and len(self.children) < CONTEXTS_MAX:
                self.spare = self.fork()


if __name__ == "__main__":
    # The engine interrupts runs through the contexts' own groups.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Host().serve()
