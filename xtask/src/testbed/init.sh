#!/bin/busybox sh
# First process of the test guest. ttyS0 is the kernel's console; ttyS1 carries commands:
# one line "<id> <base64 of a script>" in, one line "<id> <exit code> <base64 of its output>" out.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs tmp /tmp
mount -t tmpfs shm /dev/shm
while read -r module; do insmod "$module" || echo "insmod $module failed" >/dev/console; done </modules/order
stty -F /dev/ttyS1 raw -echo 115200
commands() {
    exec 3<>/dev/ttyS1
    echo "0 0 " >&3
    while read -r id script <&3; do
        echo "$script" | base64 -d >/tmp/.command
        /bin/sh /tmp/.command >/tmp/.output 2>&1 </dev/null 3>&-
        code=$?
        echo "$id $code $(base64 -w 0 /tmp/.output)" >&3
    done
}
# Not in this shell: what a script leaves in the background becomes a child of the first process, and the signal of its end
# makes busybox forget the part of a line that it has read.
commands &
wait $!
# The other end of the console is gone.
poweroff -f
