# What edgec does on a board over ssh: sh -c THIS edgec ACTION [ARGUMENT ...]
#
# All of it stays in one folder of the user's, and a systemd user unit if one is asked for. The
# server and TVM's runtime are in server-DIGEST, which appears when it is complete. Facts are
# printed as "edgec:NAME=VALUE", so that greetings of a login script are not taken for one.
set -eu
umask 077
home="$HOME/.local/share/edgec"
units="${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user"
unit=edgec-server.service
# A login over ssh may lack it, and systemctl needs it.
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$(id -u)}"

say() { printf 'edgec:%s=%s\n' "$1" "$2"; }
fail() { printf '%s\n' "$*" >&2; exit 1; }
is_service() { [ -e "$units/$unit" ]; }

# The server's process number, if it lives; a number used again is not taken for it.
server() {
  if is_service; then
    pid=$(systemctl --user show --property=MainPID --value "$unit" 2>/dev/null) || return 1
  else
    pid=$(cat "$home/pid" 2>/dev/null) || return 1
  fi
  case "$(command_line "$pid")" in *"$home/server-"*) printf '%s' "$pid" ;; *) return 1 ;; esac
}

command_line() { tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" || :; }

# What is here, and what runs.
look() {
  say architecture "$(uname -m)"
  say bits "$(getconf LONG_BIT 2>/dev/null || :)"
  say libc "$(getconf GNU_LIBC_VERSION 2>/dev/null || :)"
  mkdir -p "$home"
  # Not df, which reads the table of mounts and fails where it cannot.
  say disk "$(stat -f -c '%a %S' "$home" || :)"
  if pid=$(server); then say running "$(command_line "$pid")"; fi
  if is_service; then say service yes; fi
  cd "$home"
  for file in server-*/*; do
    if [ -f "$file" ]; then say file "$(sha256sum "$file")"; fi
  done
}

# install DIGEST [OLD NEW ...]: new files and their checksums come as a tar archive, the others are
# linked from what is here.
install() {
  final="$home/server-$1"
  shift
  rm -rf "$home"/.new-*
  new="$home/.new-$$"
  trap 'rm -rf "$new"' EXIT
  trap 'exit 1' HUP INT TERM
  mkdir -p "$new"
  tar -xf - -C "$new"
  while [ $# -gt 0 ]; do
    ln "$home/$1" "$new/$2"
    shift 2
  done
  (cd "$new" && sha256sum -c SHA256SUMS >/dev/null)
  sync
  # It is there if its files are damaged: whoever runs it must not go on.
  if [ -d "$final" ]; then stop; fi
  rm -rf "$final"
  mv "$new" "$final"
}

# What the server asks of its clients, made up once.
secret() {
  mkdir -p "$home"
  if [ ! -s "$home/secret" ]; then
    made=$(head -c 32 /dev/urandom | sha256sum)
    printf '%s\n' "${made%% *}" >"$home/secret.new"
    mv "$home/secret.new" "$home/secret"
  fi
  say secret "$(cat "$home/secret")"
}

# start DIGEST PORT KEY [service]: nothing happens if the same server runs already.
start() {
  folder="$home/server-$1"
  wanted="$folder/edgec-server 127.0.0.1 $2 $home/files --secret $home/secret --key $3 "
  if [ "${4:-}" ] && ! is_service; then
    stop
    mkdir -p "$units"
  elif pid=$(server); then
    case "$(command_line "$pid")" in *"$wanted") return ;; esac
    stop
  fi
  if [ "${4:-}" ] || is_service; then start_service "$@"; else start_process "$@"; fi
  say started yes
  for old in "$home"/server-*; do
    if [ "$old" != "$folder" ]; then rm -rf "$old"; fi
  done
}

start_process() {
  setsid "$folder/edgec-server" 127.0.0.1 "$2" "$home/files" --secret "$home/secret" --key "$3" \
    </dev/null >"$home/log" 2>&1 &
  pid=$!
  printf '%s\n' "$pid" >"$home/pid"
  tries=0
  until grep -q '^listening on' "$home/log"; do
    kill -0 "$pid" 2>/dev/null || fail "the server ended: $(tail -n 1 "$home/log")"
    [ "$((tries += 1))" -lt 100 ] || fail "the server does not listen; see $home/log"
    sleep 0.1
  done
}

start_service() {
  cat >"$units/$unit.new" <<END
[Unit]
Description=edgec board server

[Service]
Type=exec
ExecStart="$folder/edgec-server" 127.0.0.1 $2 "$home/files" --secret "$home/secret" --key "$3"
Restart=on-failure
NoNewPrivileges=yes
RestrictAddressFamilies=AF_INET AF_UNIX
MemoryMax=90%
TasksMax=256
LimitCORE=0

[Install]
WantedBy=default.target
END
  mv "$units/$unit.new" "$units/$unit"
  systemctl --user daemon-reload
  systemctl --user --quiet enable "$unit"
  systemctl --user restart "$unit"
}

# Is there a systemd that runs services of this user, and do they outlive the login?
check_service() {
  command -v systemctl >/dev/null || fail "it has no systemd; leave out --service"
  systemctl --user show --property=Version >/dev/null || exit 1
  say lingers "$(loginctl show-user --property=Linger --value "$(id -un)" 2>/dev/null || echo no)"
}

stop() {
  pid=$(server) || pid=
  if [ -n "$pid" ]; then say stopped "$pid"; fi
  if is_service; then
    # Also one that is only about to run.
    systemctl --user stop "$unit"
  elif [ -z "$pid" ]; then
    return 0
  else
    kill -- "-$pid" 2>/dev/null || kill "$pid" 2>/dev/null || :
    tries=0
    while kill -0 "$pid" 2>/dev/null && [ "$((tries += 1))" -lt 50 ]; do sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || :
  fi
  rm -rf "$home/pid" "$home/files/session"
}

# install_stage NAME DIGEST: a bundle comes as a tar archive, in place of an older one of this name.
install_stage() {
  new="$home/stages/.new-$$"
  trap 'rm -rf "$new"' EXIT
  trap 'exit 1' HUP INT TERM
  mkdir -p "$new"
  tar -xf - -C "$new"
  sync
  rm -rf "$home/stages/$1"-*
  mv "$new" "$home/stages/$1-$2"
}

# serve_stage NAME DIGEST [OPTION ...]: the first line that comes is the key; when no more can come,
# the stage ends. It listens where this connection reached the board, at a free port.
serve_stage() {
  folder="$home/stages/$1-$2"
  shift 2
  [ -f "$folder/run" ] || { say missing yes; return; }
  address="${SSH_CONNECTION:-}"
  address="${address% *}"
  address="${address##* }"
  [ "$address" ] || fail "its ssh server does not say where it was reached (SSH_CONNECTION)"
  case "$address" in *:*) address="[$address]" ;; esac
  IFS= read -r key
  # The key is in no file and no command line.
  exec "$folder/run" --serve "$address:0" --attached --bundle "$folder" --key /dev/fd/3 "$@" 3<<END
$key
END
}

# Leave the board as it was.
clean() {
  stop
  if is_service; then
    systemctl --user --quiet disable "$unit" || :
    rm -f "$units/$unit"
    systemctl --user daemon-reload || :
  fi
  rm -rf "$home"
}

"$@"
