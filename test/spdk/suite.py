"""Runs the suite and reports every test by name.

    suite.py [-v] [TEST…]       all tests, or those named (module[.Class[.test]])

A test that cannot run is not passed: the report names it and what it lacks, and with CI=true the
suite fails.
"""

import os
import re
import sys
import time
import unittest

SPDK = os.environ["SPDK_BUILT"]


class Report(unittest.TextTestResult):
    """Remembers what became of each test."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.outcomes = {}

    def startTest(self, test):
        super().startTest(test)
        self.outcomes[test.id()] = "passed"

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.outcomes[test.id()] = f"NOT RUN: {reason}"

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.outcomes[test.id()] = "FAILED"

    def addError(self, test, err):
        super().addError(test, err)
        self.outcomes[test.id()] = "FAILED"

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.outcomes[test.id()] = f"FAILED: {subtest.id()}"

    def count(self, beginning):
        return sum(outcome.startswith(beginning) for outcome in self.outcomes.values())


def version():
    """What the SPDK under test calls itself."""
    for header in ("include/spdk/version.h", "../include/spdk/version.h"):
        path = os.path.join(SPDK, header)
        if os.path.exists(path):
            with open(path) as file:
                text = file.read()
            numbers = dict(re.findall(r"#define SPDK_VERSION_(MAJOR|MINOR)\s+(\d+)", text))
            return f"SPDK v{numbers['MAJOR']}.{int(numbers['MINOR']):02}"
    return "SPDK of unknown version"


def show(report):
    """What test.sh prints behind a suite, from the line with === on."""
    counts = [report.count("passed"), report.count("FAILED"), report.count("NOT RUN")]
    date = time.strftime("%Y-%m-%d", time.gmtime())
    print("=== {}, {}: {} passed, {} failed, {} not run".format(version(), date, *counts))
    for name, outcome in report.outcomes.items():
        print(f"{name}: {outcome}")
    return counts


def main(names):
    loader = unittest.TestLoader()
    tests = (loader.loadTestsFromNames(names) if names
             else loader.discover(os.path.dirname(os.path.abspath(__file__))))
    runner = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=Report)
    report = runner.run(tests)
    _, _, missing = show(report)
    if missing and os.environ.get("CI") == "true":
        print("tests that cannot run fail in CI")
        return 1
    return 0 if report.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
