/* Preloaded into a program, it lets calls fail with EIO, as a network mount does whose server is gone.

   IO_ERRORS lists what fails: `call:part of the path`, or `call:part:N` from the Nth time on; with commas between them.
   The calls are open, read, write, fsync, stat and readdir. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int times[16];

static int fails(const char *call, const char *path) {
    char rules[4096];
    const char *all = getenv("IO_ERRORS");
    int number = 0;
    if (!all || !path || strlen(all) >= sizeof rules) return 0;
    strcpy(rules, all);
    for (char *rest = rules, *rule; (rule = strsep(&rest, ",")); number++) {
        char *name = strsep(&rule, ":"), *part = strsep(&rule, ":");
        if (strcmp(name, call) || !part || !strstr(path, part)) continue;
        if (rule && ++times[number % 16] < atoi(rule)) continue;
        errno = EIO;
        return 1;
    }
    return 0;
}

static int file_fails(const char *call, int file) {
    char link[64], path[4096];
    int error = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = error;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                              \
    int name(const char *path, int flags, ...) {                                \
        va_list list;                                                           \
        va_start(list, flags);                                                  \
        mode_t mode = va_arg(list, mode_t);                                     \
        va_end(list);                                                           \
        return fails("open", path) ? -1 : NEXT(name)(path, flags, mode);        \
    }
#define OPENAT(name)                                                            \
    int name(int folder, const char *path, int flags, ...) {                    \
        va_list list;                                                           \
        va_start(list, flags);                                                  \
        mode_t mode = va_arg(list, mode_t);                                     \
        va_end(list);                                                           \
        return fails("open", path) ? -1 : NEXT(name)(folder, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t read(int file, void *to, size_t size) { return file_fails("read", file) ? -1 : NEXT(read)(file, to, size); }

ssize_t write(int file, const void *from, size_t size) {
    if (!file_fails("write", file)) return NEXT(write)(file, from, size);
    if (size > 9) NEXT(write)(file, from, 9); /* what was on its way may be there */
    errno = EIO;
    return -1;
}

int fsync(int file) { return file_fails("fsync", file) ? -1 : NEXT(fsync)(file); }

int stat(const char *path, struct stat *to) { return fails("stat", path) ? -1 : NEXT(stat)(path, to); }
int stat64(const char *path, struct stat64 *to) { return fails("stat", path) ? -1 : NEXT(stat64)(path, to); }

int fstatat(int folder, const char *path, struct stat *to, int flags) {
    return fails("stat", path) ? -1 : NEXT(fstatat)(folder, path, to, flags);
}
int fstatat64(int folder, const char *path, struct stat64 *to, int flags) {
    return fails("stat", path) ? -1 : NEXT(fstatat64)(folder, path, to, flags);
}

struct dirent *readdir(DIR *folder) { return file_fails("readdir", dirfd(folder)) ? NULL : NEXT(readdir)(folder); }
struct dirent64 *readdir64(DIR *folder) {
    return file_fails("readdir", dirfd(folder)) ? NULL : NEXT(readdir64)(folder);
}
