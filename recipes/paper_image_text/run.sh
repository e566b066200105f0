#!/usr/bin/env bash
# The image-text run of the FuseMix paper (arXiv 2312.10144, Table 1), with the commands that a user has.
#
#   recipes/paper_image_text/run.sh DATA OUT
#
# DATA holds the images and annotation files as the README beside this file says; OUT is a folder to write. Run it again
# after an interruption: what is finished is kept. Other encoders, data or settings, by environment variables:
#   IMAGE, TEXT   encoders                       facebook/dinov2-giant, BAAI/bge-large-en-v1.5
#   SOURCES       what to train on               "coco vg sbu cc3m"
#   ROW           the row of Table 1 to compare  "D,B 5M"
#   FIT           more options of `fusemix fit`
set -euo pipefail
if (($# != 2)); then
  echo "usage: $0 DATA OUT" >&2
  exit 2
fi
data=$1 out=$2 here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
image=${IMAGE:-facebook/dinov2-giant} text=${TEXT:-BAAI/bge-large-en-v1.5} row=${ROW:-D,B 5M}
read -ra sources <<<"${SOURCES:-coco vg sbu cc3m}"
read -ra fit <<<"--recipe paper ${FIT:-}"

python "$here/../published.py" paper_image_text --row "$row" # what the run is for; a wrong row must not cost hours
mkdir -p "$out"
if [[ ! -f $out/pairs.parquet ]]; then
  python "$here/pairs.py" "$data" "$out/pairs.parquet" --sources "${sources[@]}"
fi
fusemix extract "$out/pairs.parquet" --root "$data" --group group --image "image=$image" --text "text=$text" \
  -o "$out/latents"
fusemix fit "$out/latents" "${fit[@]}" -o "$out/model"
measured=()
for split in test-coco test-flickr30k; do
  if [[ $split == test-flickr30k && ! -f $data/flickr30k/dataset_flickr30k.json ]]; then
    continue
  fi
  fusemix evaluate "$out/model" "$out/latents" --split "$split" --json | tee "$out/$split.json"
  measured+=("$out/$split.json")
done
python "$here/../published.py" paper_image_text --row "$row" "${measured[@]}"
