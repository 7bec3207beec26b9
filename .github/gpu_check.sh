#!/usr/bin/env bash
# The whole path on a machine with an NVIDIA GPU, once, within 470 seconds. In the root of the repository:
#
#   bash .github/gpu_check.sh                      environment, tests/gpu, bench gpu --quick, demo with one worker
#   bash .github/gpu_check.sh --only figures       the figures of `rehearsal-kit bench gpu`, in minutes of their own
#   bash .github/gpu_check.sh --dry                on CPUs: all but what only CUDA can execute
#   bash .github/gpu_check.sh --budget 300 --only environment,tests
#
# $PYTHON (python3) needs torch for CUDA, the dependencies of the package, pytest and pytest-timeout; the package
# itself need not be installed. Wheels in .whl/ are installed into a folder of their own first, for machines
# without a network. Everything that is printed goes into $OUT, else into a new folder, with bench.json, demo.json,
# figures.md and tests.xml. A stage that fails or runs out of time does not stop the others; then 1 is returned.
# Nothing is written into the repository, and the settings of the card are left alone. After 440 seconds what is
# under way is ended, as by Ctrl-C, which takes half a minute at most.
set -u
budget=440 dry=0 only="" repo=$PWD
while [ $# -gt 0 ]; do
  case $1 in
    --dry) dry=1 ;;
    --only) only=${2:?stages} && shift ;;
    --budget) budget=${2:?seconds} && shift ;;
    *) echo "unknown option $1; it takes --dry, --only STAGES and --budget SECONDS" >&2 && exit 2 ;;
  esac
  shift
done
for each in ${only//,/ }; do
  case $each in
    environment | bench | figures | tests | demo | none) ;;
    *) echo "unknown stage $each; there are environment, bench, figures, tests and demo" >&2 && exit 2 ;;
  esac
done
[ -f "$repo/rehearsal_kit/__init__.py" ] || { echo "no rehearsal_kit in $repo; go to the root of the repository" >&2; exit 2; }
python=${PYTHON:-python3}
out=${OUT:-$(mktemp -d)}
work=$(mktemp -d)
began=$SECONDS failed=0
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
export REHEARSAL_KIT_HOME=$work/home PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
[ $dry = 0 ] || export REHEARSAL_KIT_GPU_TESTS_ON=cpu
: >"$out/check.log"

say() { echo "$*" | tee -a "$out/check.log"; }
finish() {
  if [ -d "$work/home" ]; then (cd "$work" && timeout 25 "$python" -m rehearsal_kit.cli stop) >/dev/null 2>&1; fi
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

stage() { # NAME SECONDS COMMAND...: at most so long, and at most what is left of the budget
  local name=$1 limit=$2 left=$((budget - (SECONDS - began))) start=$SECONDS status
  shift 2
  if [ "$left" -lt 20 ]; then
    say "=== $name: left out, of the budget of $budget s there are $left s left" && failed=1 && return
  fi
  [ "$limit" -le "$left" ] || limit=$left
  say "=== $name, at most $limit s"
  # By Ctrl-C, after which all that was started is ended, too: a cluster of the tests would go on by itself.
  timeout -s INT -k 30 "$limit" "$@" 2>&1 | tee -a "$out/check.log"
  status=${PIPESTATUS[0]}
  [ "$status" = 0 ] || failed=1
  summary="$summary$(printf '%-12s %4d s  %s' "$name" $((SECONDS - start)) "$(words_of "$status")")"$'\n'
}
words_of() {
  case $1 in
    0) echo "as it should be" ;;
    124 | 137) echo "not through in time" ;;
    *) echo "failed, status $1" ;;
  esac
}
wanted() {
  if [ -z "$only" ]; then [ "$1" != figures ]; else case ",$only," in *,"$1",*) true ;; *) false ;; esac; fi
}
summary=""

# An interpreter that finds the working tree first, then the wheels, then whatever $PYTHON finds: workers take
# nothing from PYTHONPATH.
mkdir -p "$work/wheels"
if ls "$repo"/.whl/*.whl >/dev/null 2>&1; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/wheels" "$repo"/.whl/*.whl || failed=1
fi
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$repo/rehearsal_kit/__init__.py")
mkdir "$work/wheels/rehearsal_kit-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: rehearsal-kit\nVersion: %s\n' "$version" \
  >"$work/wheels/rehearsal_kit-$version.dist-info/METADATA"
"$python" -m venv --without-pip "$work/venv" || exit 2
"$python" - "$work"/venv/lib/python3*/site-packages "$repo" "$work/wheels" <<'PYTHON'
import sys
found = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
with open(sys.argv[1] + "/found.pth", "w") as file:
    print(*sys.argv[2:], sep="\n", file=file)
    print(*(f"import site; site.addsitedir({path!r})" for path in found), sep="\n", file=file)
PYTHON
python=$work/venv/bin/python

environment() {
  command -v nvidia-smi >/dev/null && nvidia-smi --format=csv --query-gpu=\
name,driver_version,memory.total,memory.used,compute_mode,mig.mode.current,pcie.link.gen.current
  cd "$work" && "$python" -m rehearsal_kit.cli doctor
}
kit() { (cd "$work" && "$python" -m rehearsal_kit.cli "$@"); }
figures() { kit bench gpu --markdown --json "$out/figures.json" | tee "$out/figures.md"; return "${PIPESTATUS[0]}"; }
quick() { kit bench gpu --quick --json "$out/bench.json" "$@"; }
tests() {
  cd "$repo" && "$python" -m pytest -q -p no:cacheprovider --junitxml="$out/tests.xml" -k gpu \
    tests/gpu tests/buffer/test_distributed_buffer.py || return
  # Where every test was skipped nothing was checked.
  "$python" - "$out/tests.xml" <<'PYTHON'
import sys, xml.etree.ElementTree as tree
suite = tree.parse(sys.argv[1]).getroot().find("testsuite")
sys.exit(suite.get("tests") == suite.get("skipped") and "every test was skipped: is there a GPU, and a torch for it?")
PYTHON
}
demo() { kit demo --workers 1 --tasks 2 --epochs 2 --run "$work/demo" --json "$out/demo.json"; }
export -f environment kit figures quick tests demo
export python repo work out

on_cpu=()
[ $dry = 0 ] || on_cpu=(--device cpu)
wanted environment && stage environment 60 bash -c environment
wanted figures && stage figures 440 bash -c figures
wanted bench && stage bench 90 bash -c 'quick "$@"' - "${on_cpu[@]}"
wanted tests && stage tests 270 bash -c tests
wanted demo && stage demo 110 bash -c demo
say "--- $out, in $((SECONDS - began)) s:"
say "$summary"
exit $failed
