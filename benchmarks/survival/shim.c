/* Record what a program does to files below a directory, in order, with the data.

   What this library does: stands before the C library's calls (LD_PRELOAD), lets each through, and
   appends a record of it to a file. SURVIVAL_BELOW names the directory, SURVIVAL_LOG the file.
   What it knows: files are named by their inodes, for they move; one lock keeps the order.
   What it never does: change what a call does. What is written through a mapping is not seen: of
   SQLite's files that is only the index of its journal, which a restart builds again.

   A record: kind, inode, number (offset or length), then two texts, each after its length. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, TRUNCATE, SYNC, RENAME, UNLINK, MKDIR, SYMLINK, LINK, EXTEND, SYNC_DIR };

static char below[PATH_MAX];
static size_t below_length;
static int record_fd = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
    const char *place = getenv("SURVIVAL_BELOW"), *file = getenv("SURVIVAL_LOG");
    if (!place || !file || !realpath(place, below)) return;
    below_length = strlen(below);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    record_fd = fcntl(fd, F_DUPFD_CLOEXEC, 500);
    syscall(SYS_close, fd);
}

static int is_below(const char *path) {
    return record_fd >= 0 && !strncmp(path, below, below_length) &&
           (path[below_length] == '/' || !path[below_length]);
}

/* Name the file that a descriptor is open on; returns whether it is below. */
static int path_of(int fd, char *out) {
    char link[64];
    if (record_fd < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, PATH_MAX - 1);
    if (n < 0) return 0;
    out[n] = 0;
    return is_below(out);
}

/* Make a path absolute, as its parent really is; returns whether it is below. */
static int resolve(int at, const char *path, char *out) {
    char whole[2 * PATH_MAX], parent[PATH_MAX], base[PATH_MAX];
    if (record_fd < 0 || !path) return 0;
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else if (at == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return 0;
        snprintf(whole, sizeof whole, "%s/%s", base, path);
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t n = readlink(link, base, PATH_MAX - 1);
        if (n < 0) return 0;
        base[n] = 0;
        snprintf(whole, sizeof whole, "%s/%s", base, path);
    }
    size_t n = strlen(whole);
    while (n > 1 && whole[n - 1] == '/') whole[--n] = 0;
    char *slash = strrchr(whole, '/');
    if (!slash) return 0;
    *slash = 0;
    if (!realpath(*whole ? whole : "/", parent)) return 0;
    if (snprintf(out, PATH_MAX, "%s/%s", parent, slash + 1) >= PATH_MAX) return 0;
    return is_below(out);
}

static void record(uint32_t kind, uint64_t inode, uint64_t number, const void *a, size_t a_length,
                   const void *b, size_t b_length) {
    int kept = errno;
    uint32_t lengths[2] = {(uint32_t)a_length, (uint32_t)b_length};
    struct iovec parts[6] = {{&kind, 4},          {&inode, 8},
                             {&number, 8},        {lengths, 8},
                             {(void *)a, a_length}, {(void *)b, b_length}};
    size_t total = 28 + a_length + b_length;
    if (syscall(SYS_writev, record_fd, parts, 6) != (long)total) abort();
    errno = kept;
}

static void record_path(uint32_t kind, uint64_t inode, const char *path) {
    record(kind, inode, 0, path, strlen(path), "", 0);
}

static uint64_t inode_of(int fd) {
    struct stat found;
    int kept = errno;
    uint64_t inode = fstat(fd, &found) ? 0 : (uint64_t)found.st_ino;
    errno = kept;
    return inode;
}

#define ENTER pthread_mutex_lock(&lock)
#define LEAVE pthread_mutex_unlock(&lock)

/* --- opening ------------------------------------------------------------------------------ */

static int opened(int at, const char *path, int flags, mode_t mode) {
    char where[PATH_MAX];
    struct stat before;
    if (!resolve(at, path, where)) return (int)syscall(SYS_openat, at, path, flags, mode);
    ENTER;
    int existed = !stat(where, &before);
    int fd = (int)syscall(SYS_openat, at, path, flags, mode);
    if (fd >= 0 && !existed && (flags & O_CREAT)) record_path(CREATE, inode_of(fd), where);
    if (fd >= 0 && existed && (flags & O_TRUNC)) record(TRUNCATE, inode_of(fd), 0, "", 0, "", 0);
    LEAVE;
    return fd;
}

#define MODE_OF(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...) { MODE_OF(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE_OF(flags) return opened(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE_OF(flags) return opened(at, path, flags, mode); }

/* --- data --------------------------------------------------------------------------------- */

static ssize_t written(int fd, const void *data, size_t size, off_t at, int is_placed) {
    char where[PATH_MAX];
    if (!path_of(fd, where))
        return is_placed ? syscall(SYS_pwrite64, fd, data, size, at) : syscall(SYS_write, fd, data, size);
    ENTER;
    ssize_t done = is_placed ? syscall(SYS_pwrite64, fd, data, size, at) : syscall(SYS_write, fd, data, size);
    if (done > 0) {
        off_t offset = is_placed ? at : lseek(fd, 0, SEEK_CUR) - done;
        record(WRITE, inode_of(fd), (uint64_t)offset, data, (size_t)done, "", 0);
    }
    LEAVE;
    return done;
}

ssize_t write(int fd, const void *data, size_t size) { return written(fd, data, size, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return written(fd, data, size, at, 1); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return written(fd, data, size, at, 1); }

static ssize_t written_parts(int fd, const struct iovec *parts, int count, off_t at, int is_placed) {
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        ssize_t done = written(fd, parts[i].iov_base, parts[i].iov_len, at + total, is_placed);
        if (done < 0) return total ? total : done;
        total += done;
        if ((size_t)done < parts[i].iov_len) break;
    }
    return total;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char where[PATH_MAX];
    if (!path_of(fd, where)) return syscall(SYS_writev, fd, parts, count);
    return written_parts(fd, parts, count, 0, 0);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    return written_parts(fd, parts, count, at, 1);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    return written_parts(fd, parts, count, at, 1);
}

static void copied(int out, off_t out_at, int in, off_t in_at, ssize_t done) {
    char *data = malloc((size_t)done);
    if (!data || pread(in, data, (size_t)done, in_at) != done) abort();
    record(WRITE, inode_of(out), (uint64_t)out_at, data, (size_t)done, "", 0);
    free(data);
}

ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t size, unsigned flags) {
    char where[PATH_MAX];
    if (!path_of(out, where)) return syscall(SYS_copy_file_range, in, in_at, out, out_at, size, flags);
    ENTER;
    off_t from = in_at ? *in_at : lseek(in, 0, SEEK_CUR), to = out_at ? *out_at : lseek(out, 0, SEEK_CUR);
    ssize_t done = syscall(SYS_copy_file_range, in, in_at, out, out_at, size, flags);
    if (done > 0) copied(out, to, in, from, done);
    LEAVE;
    return done;
}

ssize_t sendfile64(int out, int in, off64_t *at, size_t size) {
    char where[PATH_MAX];
    if (!path_of(out, where)) return syscall(SYS_sendfile, out, in, at, size);
    ENTER;
    off_t from = at ? *at : lseek(in, 0, SEEK_CUR), to = lseek(out, 0, SEEK_CUR);
    ssize_t done = syscall(SYS_sendfile, out, in, at, size);
    if (done > 0) copied(out, to, in, from, done);
    LEAVE;
    return done;
}
ssize_t sendfile(int out, int in, off_t *at, size_t size) { return sendfile64(out, in, at, size); }

static int sized(int fd, off_t length, uint32_t kind, long done) {
    char where[PATH_MAX];
    if (!done && path_of(fd, where)) record(kind, inode_of(fd), (uint64_t)length, "", 0, "", 0);
    return (int)done;
}

int ftruncate64(int fd, off64_t length) {
    ENTER;
    int done = sized(fd, length, TRUNCATE, syscall(SYS_ftruncate, fd, length));
    LEAVE;
    return done;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int fallocate64(int fd, int mode, off64_t at, off64_t length) {
    ENTER;
    long done = syscall(SYS_fallocate, fd, mode, at, length);
    if (!mode) sized(fd, at + length, EXTEND, done); /* with a mode, space is only reserved */
    LEAVE;
    return (int)done;
}
int fallocate(int fd, int mode, off_t at, off_t length) { return fallocate64(fd, mode, at, length); }
int posix_fallocate64(int fd, off64_t at, off64_t length) { return fallocate64(fd, 0, at, length) ? errno : 0; }
int posix_fallocate(int fd, off_t at, off_t length) { return posix_fallocate64(fd, at, length); }

static int synced(int fd, long call) {
    char where[PATH_MAX];
    struct stat found;
    if (!path_of(fd, where)) return (int)syscall(call, fd);
    ENTER;
    int done = (int)syscall(call, fd);
    if (!done && !fstat(fd, &found))
        record_path(S_ISDIR(found.st_mode) ? SYNC_DIR : SYNC, (uint64_t)found.st_ino, where);
    LEAVE;
    return done;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

/* --- names -------------------------------------------------------------------------------- */

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    char a[PATH_MAX], b[PATH_MAX];
    ENTER;
    int is_seen = resolve(from_at, from, a) && resolve(to_at, to, b);
    int done = (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    if (!done && is_seen) record(RENAME, 0, 0, a, strlen(a), b, strlen(b));
    LEAVE;
    return done;
}
int renameat(int from_at, const char *from, int to_at, const char *to) { return renameat2(from_at, from, to_at, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int at, const char *path, int flags) {
    char where[PATH_MAX];
    ENTER;
    int is_seen = resolve(at, path, where);
    int done = (int)syscall(SYS_unlinkat, at, path, flags);
    if (!done && is_seen) record_path(UNLINK, 0, where);
    LEAVE;
    return done;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int at, const char *path, mode_t mode) {
    char where[PATH_MAX];
    ENTER;
    int is_seen = resolve(at, path, where);
    int done = (int)syscall(SYS_mkdirat, at, path, mode);
    if (!done && is_seen) record_path(MKDIR, 0, where);
    LEAVE;
    return done;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int symlinkat(const char *target, int at, const char *path) {
    char where[PATH_MAX];
    ENTER;
    int is_seen = resolve(at, path, where);
    int done = (int)syscall(SYS_symlinkat, target, at, path);
    if (!done && is_seen) record(SYMLINK, 0, 0, where, strlen(where), target, strlen(target));
    LEAVE;
    return done;
}
int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    char a[PATH_MAX], b[PATH_MAX];
    ENTER;
    int is_seen = resolve(from_at, from, a) && resolve(to_at, to, b);
    int done = (int)syscall(SYS_linkat, from_at, from, to_at, to, flags);
    if (!done && is_seen) record(LINK, 0, 0, a, strlen(a), b, strlen(b));
    LEAVE;
    return done;
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }
