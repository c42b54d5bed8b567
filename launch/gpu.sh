#!/usr/bin/env bash
# Trains on the GPUs of this machine, or on a Slurm cluster.
#
#     bash launch/gpu.sh -- jaxlab train --config=configs/olmo.py:1b --workdir=DIR \
#       --config.data.source=embedded
#     bash launch/gpu.sh --slurm --nodes=4 --gpus=8 --partition=NAME -- jaxlab train ...
#
# Here: looks for GPUs, installs jaxlab with CUDA into .venv (or JAXLAB_VENV), checks that
# jax sees them and becomes the command, one process for all GPUs.
#
# --slurm: installs the same way, on this machine, which must share its file system with
# the nodes; writes a batch script and submits it. One process a GPU: this is how jax reads
# Slurm's variables, the coordinator's among them. Two minutes before the time is up the
# processes are told to save and the job is put back into the queue, as Slurm does with a
# preempted one; the same command resumes by itself, so --workdir must be shared too.
# Secrets need nothing: Slurm hands on the environment you submit from.
#
# --cuda=12|13      default: 13 if the driver is 580 or newer, or with --slurm
# --nodes, --gpus   how many nodes (1), and GPUs of each (8)
# --time            of one stay in the queue's nodes, default 24:00:00
# --partition, --account     as in sbatch
# --job             a name for the job and its log, default jaxlab
# --script          the batch script to write, default JOB.sbatch
# --dry-run         shows commands and batch script, runs and writes nothing
#
# Every command is shown before it runs, after a +. Paths are relative to where you are.

set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=launch/shown.sh
source "$root/launch/shown.sh"
# shellcheck source=launch/venv.sh
source "$root/launch/venv.sh"
cuda="" slurm="" nodes=1 gpus=8 time=24:00:00 partition="" account="" job=jaxlab script=""
command=()

parse() {
  while (($#)); do
    case "$1" in
      --cuda | --nodes | --gpus | --time | --partition | --account | --job | --script)
        (($# > 1)) || fail "$1 needs a value"
        set -- "$1=$2" "${@:3}"
        continue
        ;;
      --cuda=* | --nodes=* | --gpus=* | --time=* | --partition=* | --account=* | \
        --job=* | --script=*) set_flag "${1%%=*}" "${1#*=}" ;;
      --slurm | --dry-run) set_flag "$1" 1 ;;
      -h | --help) usage && exit 0 ;;
      --) shift && command=("$@") && break ;;
      *) fail "unknown flag ${1%%=*}; see --help (the command comes after --)" ;;
    esac
    shift
  done
}

check() {
  local pair
  [[ "$cuda" =~ ^(|12|13)$ ]] || fail "--cuda=$cuda: use 12 or 13"
  for pair in "nodes=$nodes" "gpus=$gpus"; do
    [[ "$pair" =~ =[1-9][0-9]*$ ]] || fail "--$pair: use a whole number, 1 or more"
  done
  # These are written into the batch script.
  for pair in "time=$time" "partition=$partition" "account=$account" "job=$job"; do
    [[ "$pair" =~ ^[a-z]+=[A-Za-z0-9_.,:-]*$ ]] || fail "--$pair: use letters, digits and _.,:-"
  done
  for pair in "job=$job" "script=$script"; do
    [[ "$pair" != *=-* ]] || fail "--$pair: sbatch would take it for an option; begin otherwise"
  done
  check_command . here ${command[@]+"${command[@]}"}
  script="${script:-$job.sbatch}"
}

# ------------------------------------------------------------------ installation

# Which CUDA the driver can run: https://docs.jax.dev/en/latest/installation.html
detect_cuda() {
  local drivers
  echo "+ nvidia-smi --query-gpu=driver_version --format=csv,noheader"
  [[ -z "$dry_run" ]] || return 0
  drivers="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader)" ||
    fail "no GPU: nvidia-smi does not work here" 1
  [[ "$drivers" =~ ^[0-9]+\. ]] || fail "no GPU: nvidia-smi lists none" 1
  say "$(wc -l <<<"$drivers" | tr -d ' ') GPUs, driver ${drivers%%$'\n'*}"
  if [[ -z "$cuda" ]]; then
    ((${drivers%%.*} >= 580)) && cuda=13 || cuda=12
  fi
}

install() {
  say "with launch/venv.sh sourced:"
  if [[ "${cuda:-13}" == 13 ]]; then
    step jaxlab_install cuda
  else
    step jaxlab_install ""
    step "$JAXLAB_BIN/python" -P -m pip install "jax[cuda12]"
  fi
}

# ------------------------------------------------------------------ Slurm

batch_script() {
  cat <<BATCH
#!/usr/bin/env bash
#SBATCH --job-name=$job
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --time=$time
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
${partition:+#SBATCH --partition=$partition
}${account:+#SBATCH --account=$account
}
# Time is nearly up (USR1): the steps save, then the job queues again. Cancelled or
# preempted (TERM): they save; Slurm itself queues a preempted job again, and a cancelled
# one must not come back.
again=""
tell_steps() { scancel --signal=TERM "\$SLURM_JOB_ID" || true; }
trap 'again=1; tell_steps' USR1
trap tell_steps TERM

JAXLAB_MULTIHOST=1 srun --kill-on-bad-exit=1 $(quoted "$JAXLAB_BIN/jaxlab" "${command[@]:1}") &
# A trap ends \`wait\` before the step does.
while kill -0 \$! 2>/dev/null; do wait \$! || true; done
code=0
wait \$! || code=\$?
if [[ -n "\$again" ]]; then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$code"
BATCH
}

submit() {
  say "$script:"
  batch_script | sed 's/^/    /'
  [[ -n "$dry_run" ]] || batch_script >"$script"
  step sbatch "$script"
}

parse "$@"
check
if [[ -n "$slurm" ]]; then
  [[ -n "$dry_run" ]] || type sbatch >/dev/null 2>&1 || fail "sbatch is not installed here"
  install
  submit
else
  detect_cuda
  install
  step "$JAXLAB_BIN/python" -P -c "import jax; print(jax.devices('gpu'))"
  command[0]="$JAXLAB_BIN/jaxlab"
  echo "+ $(quoted "${command[@]}")"
  [[ -n "$dry_run" ]] || exec "${command[@]}" # signals reach it, and not a shell
fi
