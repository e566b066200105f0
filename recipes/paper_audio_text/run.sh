#!/usr/bin/env bash
# The audio-text run of the FuseMix paper (arXiv 2312.10144, Table 2), with the commands that a user has.
#
#   recipes/paper_audio_text/run.sh DATA OUT
#
# DATA holds the clips and CSV files as the README beside this file says; OUT is a folder to write. Run it again after an
# interruption: what is finished is kept. Other encoders, data or settings, by environment variables:
#   AUDIO, TEXT   encoders                       openai/whisper-large-v3+laion/clap-htsat-fused, BAAI/bge-large-en-v1.5
#   SOURCES       what to train and measure on   "audiocaps clotho"
#   ROW           the row of Table 2 to compare  65K, or 50K/15K for one source
#   FIT           more options of `fusemix fit`
set -euo pipefail
if (($# != 2)); then
  echo "usage: $0 DATA OUT" >&2
  exit 2
fi
data=$1 out=$2 here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
audio=${AUDIO:-openai/whisper-large-v3+laion/clap-htsat-fused} text=${TEXT:-BAAI/bge-large-en-v1.5}
read -ra sources <<<"${SOURCES:-audiocaps clotho}"
read -ra fit <<<"--recipe paper ${FIT:-}"
if ((${#sources[@]} == 1)); then
  row=${ROW:-50K/15K}
else
  row=${ROW:-65K}
fi

python "$here/../published.py" paper_audio_text --row "$row" # what the run is for; a wrong row must not cost hours
mkdir -p "$out"
if [[ ! -f $out/pairs.csv ]]; then
  python "$here/pairs.py" "$data" "$out/pairs.csv" --sources "${sources[@]}"
fi
fusemix extract "$out/pairs.csv" --root "$data" --group group --sound "sound=$audio" --text "text=$text" -o "$out/latents"
fusemix fit "$out/latents" "${fit[@]}" -o "$out/model"
measured=()
for source in "${sources[@]}"; do
  fusemix evaluate "$out/model" "$out/latents" --split "test-$source" --json | tee "$out/test-$source.json"
  measured+=("$out/test-$source.json")
done
python "$here/../published.py" paper_audio_text --row "$row" "${measured[@]}"
