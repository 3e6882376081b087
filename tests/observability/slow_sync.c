/* Preloaded into a queue node: while the file $SLOW_SYNC_FILE exists, each fdatasync takes as many milliseconds more as it
   says. Built by `run`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int fdatasync(int fd) {
    static int (*real)(int);
    const char *path = getenv("SLOW_SYNC_FILE");
    FILE *file = path ? fopen(path, "r") : NULL;
    long milliseconds = 0;
    if (file) {
        if (fscanf(file, "%ld", &milliseconds) != 1) milliseconds = 0;
        fclose(file);
    }
    if (milliseconds > 0) {
        struct timespec wait = {milliseconds / 1000, milliseconds % 1000 * 1000000};
        nanosleep(&wait, NULL);
    }
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return real(fd);
}
