"""Writes the drawings of docs/kernels.md beside this file: ``python docs/figures/kernels.py``."""

from html import escape
from pathlib import Path

HERE = Path(__file__).parent
INK, GREY, PAPER = "#24292f", "#8c959f", "#ffffff"
BLUE, GREEN, ORANGE, RED, PLAIN = "#cfe3fb", "#d3efd6", "#fde3c3", "#f8d3d3", "#f1f3f5"


class Drawing:
    """An SVG with a white ground, so that it can be read on dark pages too.

    Coordinates are pixels. Texts are centred unless ``anchor`` says "start" or "end".
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" '
            'font-family="Helvetica, Arial, sans-serif" font-size="13">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto">'
            f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="6" fill="{PAPER}"/>',
        ]

    def text(
        self, x: float, y: float, text: str, *, anchor: str = "middle", size: int = 13
    ) -> None:
        """Write a line of text whose base line is at y."""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" fill="{INK}">'
            f"{escape(text)}</text>"
        )

    def box(
        self, x: float, y: float, w: float, h: float, text: str = "", fill: str = PLAIN
    ) -> None:
        """Draw a box with lines of text in its middle."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="3" fill="{fill}" '
            f'stroke="{GREY}"/>'
        )
        lines = text.split("\n") if text else []
        for number, line in enumerate(lines):
            self.text(x + w / 2, y + h / 2 + 4.5 + 16 * (number - (len(lines) - 1) / 2), line)

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        """Draw a line through the points, with a head at the last one."""
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{INK}" marker-end="url(#head)"{dashes}/>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Draw a dashed line without a head."""
        self.parts.append(
            f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{GREY}" stroke-dasharray="4 4"/>'
        )

    def svg(self) -> str:
        """The file's text."""
        return "\n".join([*self.parts, "</svg>", ""])


def call() -> Drawing:
    """The way of a call from the module to a kernel."""
    d = Drawing(760, 232, "The way of a call: module, function, op, backend, kernel")
    names = ("module\nnn/", "function\nfunctional.py", "op\nop/", "backend\nbackends/")
    for number, name in enumerate((*names, "kernel\ncsrc/, kernels/")):
        d.box(20 + 148 * number, 30, 124, 54, name, GREEN if number == 4 else BLUE)
        if number:
            d.arrow((20 + 148 * number - 24, 57), (20 + 148 * number - 2, 57))
    says = ("", "checks once;\nCall, Wanted, Mode", "autograd, vmap,\ntorch.compile")
    for number, text in enumerate((*says, "memory,\naddresses")):
        for row, line in enumerate(text.split("\n")):
            d.text(82 + 148 * number, 106 + 15 * row, line, size=12)
    d.box(168, 160, 420, 42, "direct call: one compiled function, csrc/direct/", ORANGE)
    d.arrow((82, 86), (82, 181), (166, 181))
    d.arrow((588, 181), (674, 181), (674, 86))
    d.text(378, 220, "plain tensors on a CPU, and only autograd watches", size=12)
    return d


def blocks() -> Drawing:
    """Blocks of steps in the forward pass."""
    d = Drawing(760, 250, "The forward pass takes a block of time steps at a time")
    d.text(20, 26, "time", anchor="start")
    d.arrow((56, 22), (740, 22))
    for block in range(3):
        x = 20 + 245 * block
        fill = GREEN if block == 1 else PLAIN
        for step in range(6):
            d.box(x + 38 * step, 40, 34, 30, "x", fill)
        name = ("block before", "this block", "block after")[block]
        d.text(x + 113, 92, name, size=12)
    d.arrow((378, 100), (378, 128))
    d.box(265, 130, 226, 36, "x W_ih^T + b, one product", BLUE)
    d.text(258, 153, "all rows of all steps of the block", anchor="end", size=12)
    d.arrow((378, 166), (378, 188))
    for step in range(6):
        d.box(265 + 38 * step, 190, 30, 30, "h, c", ORANGE)
        if step:
            d.arrow((265 + 38 * step - 8, 205), (265 + 38 * step, 205))
    d.text(258, 203, "gate sums, which stay in L2;", anchor="end", size=12)
    d.text(258, 218, "each step adds h W_hh^T", anchor="end", size=12)
    d.text(500, 203, "and computes the cell from", anchor="start", size=12)
    d.text(500, 218, "its sums: h, c, reserve", anchor="start", size=12)
    return d


def registers() -> Drawing:
    """A panel of packed weights and the sums in registers."""
    d = Drawing(760, 336, "Sums in registers: six rows by the four gates of sixteen units")
    gates = (("i", BLUE), ("f", GREEN), ("g", ORANGE), ("o", RED))
    d.text(456, 24, "a panel of W_hh, packed: the four gates of the same 16 units, H deep")
    for depth in range(4):
        for number, (gate, fill) in enumerate(gates):
            text = f"16 x {gate}" if depth < 3 else "..."
            d.box(290 + 84 * number, 36 + 26 * depth, 80, 22, text, fill)
    d.text(640, 52, "k = 0", anchor="start", size=12)
    d.text(640, 78, "k = 1", anchor="start", size=12)
    d.text(640, 104, "k = 2", anchor="start", size=12)
    d.text(110, 166, "6 rows of h", size=13)
    for row in range(6):
        for k in range(4):
            d.box(30 + 42 * k, 178 + 22 * row, 38, 18, "h" if k < 3 else "...", PLAIN)
        for number, (_, fill) in enumerate(gates):
            d.box(290 + 84 * number, 178 + 22 * row, 80, 18, "", fill)
        d.arrow((202, 187 + 22 * row), (284, 187 + 22 * row))
    d.text(456, 166, "24 vector registers of sums: all multiply-adds of a k need 10 loads")
    d.text(640, 250, "cell in registers", anchor="start", size=12)
    d.arrow((624, 246), (637, 246))
    d.text(380, 322, "for each k: 4 loads of weights, 6 broadcasts of h, 24 multiply-adds", size=12)
    return d


def threads() -> Drawing:
    """The two ways to divide a step among threads."""
    d = Drawing(760, 250, "Threads divide a call by rows or by hidden units")
    for x, title in ((20, "by rows (large batches)"), (400, "by hidden units (few rows)")):
        d.text(x + 170, 26, title)
    d.box(150, 42, 190, 72, "W_hh\nread by both", PLAIN)
    d.box(40, 42, 80, 34, "rows 0-15", BLUE)
    d.box(40, 80, 80, 34, "rows 16-31", ORANGE)
    d.text(80, 132, "thread 0 above, thread 1 below", anchor="start", size=12)
    d.box(420, 42, 80, 72, "all rows", PLAIN)
    d.box(530, 42, 93, 72, "units 0-127\nof W_hh", BLUE)
    d.box(627, 42, 93, 72, "128-255\nof W_hh", ORANGE)
    d.text(450, 132, "each thread keeps its half of W_hh in its L2", anchor="start", size=12)
    for x in (40, 420):
        for row, fill in enumerate((BLUE, ORANGE)):
            for step in range(5):
                d.box(x + 60 * step, 150 + 36 * row, 52, 28, f"t = {step}", fill)
    for step in range(1, 5):
        d.line(420 + 60 * step - 4, 142, 420 + 60 * step - 4, 222)
    d.text(190, 240, "no waiting between steps", size=12)
    d.text(570, 240, "a barrier after each step: h of all units is needed", size=12)
    return d


def backward() -> Drawing:
    """The backward pass: steps back in time, then gradients as tasks."""
    d = Drawing(760, 216, "The backward pass: a block of steps back in time, then products")
    d.text(740, 24, "backward in time, block by block", anchor="end", size=12)
    d.arrow((540, 20), (40, 20))
    for step in range(6):
        x = 500 - 84 * step
        d.box(x, 40, 76, 40, f"step {5 - step}\ndh, digates", ORANGE)
        if step:
            d.arrow((x + 84, 60), (x + 78, 60))
    d.arrow((300, 82), (300, 106))
    d.text(312, 99, "digates of the block: up to 512 rows", anchor="start", size=12)
    names = ("dW_ih", "dW_ih", "dW_hh", "dW_hh", "dx", "dx", "dx")
    for number, name in enumerate(names):
        d.box(80 + 84 * number, 110, 76, 32, name, BLUE if number < 4 else GREEN)
    d.text(380, 162, "tasks of about 50 us, as matrix products over all rows of the block", size=12)
    d.text(380, 180, "a thread that has finished its own takes those of the other", size=12)
    d.text(380, 206, "with checkpoint_every = k, the reserve is computed again first", size=12)
    return d


def persistent() -> Drawing:
    """A persistent kernel on a GPU."""
    d = Drawing(760, 300, "A persistent kernel: every multiprocessor keeps a slice of W_hh")
    for block in range(4):
        x = 30 + 180 * block
        d.box(x, 30, 160, 150, "", PLAIN)
        name = f"block {block}" if block < 3 else "block n"
        d.text(x + 80, 48, name)
        d.box(x + 10, 58, 140, 40, "slice of W_hh\nregisters, shared mem.", BLUE)
        d.box(x + 10, 104, 140, 32, "product, then cell", ORANGE)
        d.box(x + 10, 142, 140, 30, "c of its units", GREEN)
        d.arrow((x + 50, 182), (x + 50, 216))
        d.arrow((x + 110, 216), (x + 110, 182))
    d.box(30, 218, 700, 34, "L2: h of all units in two slots: t is written while t - 1 is read")
    d.text(380, 276, "one launch for the sequence; a barrier of the blocks at each step", size=12)
    d.text(380, 292, "W_hh is read from memory once, not once a step", size=12)
    return d


def wavefront() -> Drawing:
    """Layers as a wavefront."""
    d = Drawing(760, 190, "A wavefront: a layer computes step t while the one below computes t + 1")
    for layer in range(3):
        y = 120 - 42 * layer
        d.text(110, y + 21, f"layer {layer}", anchor="end")
        for step in range(6):
            fill = (BLUE, GREEN, ORANGE)[layer]
            d.box(120 + 74 * (step + layer), y, 66, 32, f"t = {step}", fill)
    for column in range(1, 8):
        d.line(120 + 74 * column - 4, 26, 120 + 74 * column - 4, 162)
    d.text(416, 182, "barriers: T + L - 1, in the place of L T", size=12)
    return d


def groups() -> Drawing:
    """Groups: the two directions of a layer, the two decoders of a model."""
    d = Drawing(760, 214, "Groups: LSTMs of one shape that run side by side in one call")
    d.text(190, 26, "a bidirectional layer: G = 2")
    d.text(570, 26, "two decoders: G = 2")
    for x, reverse in ((30, True), (410, False)):
        for group, fill in enumerate((BLUE, ORANGE)):
            y = 48 + 60 * group
            for step in range(5):
                d.box(x + 64 * step, y, 50, 34, f"t = {step}", fill)
                if step:
                    left, right = x + 64 * step - 14, x + 64 * step
                    back = reverse and group == 1
                    ends = ((right, y + 17), (left, y + 17))
                    d.arrow(*(ends if back else ends[::-1]))
    d.text(190, 164, "own weights and own direction for each group;", size=12)
    d.text(190, 180, "both write their half of y (T, B, 2, H)", size=12)
    d.text(570, 164, "both start from the encoder's state; the input of an", size=12)
    d.text(570, 180, "unconditional one is a tensor with strides of zero", size=12)
    return d


DRAWINGS = (call, blocks, registers, threads, backward, persistent, wavefront, groups)


def main() -> None:
    """Write all drawings."""
    for draw in DRAWINGS:
        (HERE / f"kernels_{draw.__name__}.svg").write_text(draw().svg())


if __name__ == "__main__":
    main()
