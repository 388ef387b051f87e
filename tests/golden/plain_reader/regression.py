"""SPEC.md 4.6: least squares in integers."""

from .functions import clip


class Regression:
    """Weights of n features that follow what was seen."""

    def __init__(self, first, shift, ridge):
        self.first, self.weights, self.size = first, list(first), len(first)
        self.shift, self.ridge = shift, ridge
        self.squares = [[0] * self.size for _ in first]
        self.right, self.count = [0] * self.size, 0

    def predict(self, features):
        return sum(w * f for w, f in zip(self.weights, features, strict=True))

    def _shrink(self, bits):
        self.squares = [[value >> bits for value in row] for row in self.squares]
        self.right = [value >> bits for value in self.right]
        self.count >>= bits

    def fade(self):
        """Turn to another matrix."""
        self._shrink(4)

    def learn(self, features, target):
        for i, one in enumerate(features):
            if one:
                row = self.squares[i]
                for j, other in enumerate(features):
                    row[j] += one * other
                self.right[i] += one * target
        self.count += 1
        if self.count >= 2**15:
            self._shrink(1)

    def solve(self):
        one = 1 << self.shift
        for i, row in enumerate(self.squares):
            others = sum(g * w for g, w in zip(row, self.weights, strict=True))
            others -= row[i] * self.weights[i]
            wanted = self.right[i] * one + self.ridge * self.first[i] - others
            self.weights[i] = clip(wanted // (row[i] + self.ridge), 8 * one)
