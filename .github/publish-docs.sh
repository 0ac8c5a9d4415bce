#!/usr/bin/env bash
# .github/publish-docs.sh VERSION SITE: the pages of a version beside those of the others on branch gh-pages, whose front page
# names all of them and leads to the newest.
set -euo pipefail
version=$1 site=$2

pages=$(mktemp -d)
trap 'git worktree remove --force "$pages"' EXIT
git worktree add --quiet --detach "$pages"
if git ls-remote --exit-code --heads origin gh-pages > /dev/null; then
  git fetch --quiet origin +gh-pages:refs/remotes/origin/gh-pages
  git -C "$pages" checkout --quiet --detach origin/gh-pages
else
  git -C "$pages" checkout --quiet --orphan gh-pages
  git -C "$pages" rm -rfq --ignore-unmatch .
fi

rm -rf "${pages:?}/$version"
cp -r "$site" "$pages/$version"
mapfile -t versions < <(cd "$pages" && printf '%s\n' v*/ | tr -d / | sort -rV)
{
  printf '<!doctype html><html lang="en"><meta charset="utf-8"><title>diffusion-inversion</title>\n'
  printf '<meta http-equiv="refresh" content="5; url=%s/">\n<ul>\n' "${versions[0]}"
  for one in "${versions[@]}"; do printf '<li><a href="%s/">%s</a>\n' "$one" "$one"; done
  printf '</ul></html>\n'
} > "$pages/index.html"
touch "$pages/.nojekyll"
git -C "$pages" add --all
git -C "$pages" diff --cached --quiet || git -C "$pages" commit --quiet --message "Pages of $version"
git -C "$pages" push --quiet origin HEAD:refs/heads/gh-pages
