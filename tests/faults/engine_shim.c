/* Counts the calls by which processes change files below a folder, or speak to PostgreSQL, and makes one of them fail.
 *
 * Loaded with LD_PRELOAD. FAULTS_CONTROL names a file that holds a `struct control` (engine_shim.py has the same); all processes
 * that inherit it share the count. Nothing is counted while `armed` is 0. Beside that file: `.trace` gets a line for each
 * counted call if `trace` is set; `.undo` gets, for the kind POWER, what stood in files before each write, and which were
 * flushed, so that what a power cut may lose can be taken back.
 *
 * What SQLite maps (its -shm) is not seen; it makes that anew after a crash.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    NONE,    /* counts only */
    EIO_,    /* the call fails with EIO */
    FULL,    /* it fails with ENOSPC, and so does every later one that needs room */
    KILL,    /* its process is killed before it */
    TORN,    /* half of it is written, then its process is killed */
    POWER,   /* all processes end before it, and what was not flushed is lost */
    CUT,     /* the session ends before PostgreSQL gets it */
    UNHEARD, /* the session ends when PostgreSQL has done it, before the answer is heard */
    GONE,    /* this and all other sessions end before it, and none can be opened any more */
};

enum call { FILE_ = 1, ROOM = 2, WRITE = 4, SEND = 8, ANSWERED = 16 };

struct control {
    atomic_int armed, kind, trace, port, struck, lasting;
    atomic_long count, wanted;
    char folder[512], told[512];
};

static struct control *control;
static char base[PATH_MAX];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAULTS_CONTROL");
    if (!path)
        return;
    int file = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    void *at = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file < 0 || at == MAP_FAILED || strlen(path) >= sizeof base)
        abort();
    strcpy(base, path);
    syscall(SYS_close, file);
    control = at;
}

/* Add to a file of ours; raw, so that nothing of this is counted. */
static void append(const char *suffix, struct iovec *parts, int count)
{
    char path[PATH_MAX + 8];
    snprintf(path, sizeof path, "%s%s", base, suffix);
    int file = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file < 0 || syscall(SYS_writev, file, parts, count) < 0)
        abort();
    syscall(SYS_close, file);
}

static void die(void)
{
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;)
        pause();
}

/* Which file: its name below the folder, or NULL where it is another's. */
static const char *below(const char *path)
{
    size_t length = strlen(control->folder);
    if (strncmp(path, control->folder, length) || (path[length] && path[length] != '/'))
        return NULL;
    return path[length] ? path + length + 1 : ".";
}

static const char *of_descriptor(int file, char *room)
{
    char link[40];
    if (!control || !control->armed)
        return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = syscall(SYS_readlink, link, room, PATH_MAX - 1);
    if (length < 0)
        return NULL;
    room[length] = 0;
    return below(room);
}

static const char *of_path(int folder, const char *path, char *room)
{
    if (!control || !control->armed)
        return NULL;
    if (path[0] == '/')
        return below(path);
    ssize_t length;
    if (folder == AT_FDCWD) {
        length = syscall(SYS_getcwd, room, PATH_MAX) - 1;
    } else {
        char link[40];
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = syscall(SYS_readlink, link, room, PATH_MAX - 1);
    }
    if (length < 0)
        return NULL;
    snprintf(room + length, PATH_MAX - length, "/%s", path);
    return below(room);
}

/* Count a call, and tell what becomes of it: NONE, or the kind that strikes it now. */
static enum kind next(int call, const char *name, const char *what)
{
    if (control->lasting) {
        if (control->kind == POWER)
            die();
        if (control->kind == FULL && call & ROOM)
            return FULL;
        if (control->kind == GONE && call & SEND)
            return GONE;
        return NONE;
    }
    long number = atomic_fetch_add(&control->count, 1) + 1;
    if (control->trace) {
        char line[700];
        int length = snprintf(line, sizeof line, "%ld\t%d\t%s\t%.500s\n", number, call, name, what);
        append(".trace", &(struct iovec){line, length}, 1);
    }
    int kind = control->kind;
    static const int applies[] = {0, FILE_, ROOM, FILE_ | SEND, WRITE, FILE_, SEND, ANSWERED, SEND};
    if (number < control->wanted || !(call & applies[kind]) || atomic_exchange(&control->struck, 1))
        return NONE;
    snprintf(control->told, sizeof control->told, "%s %.400s", name, what);
    if (kind == POWER || kind == FULL || kind == GONE)
        control->lasting = 1;
    if (kind == KILL || kind == POWER)
        die();
    return kind;
}

/* What a power cut takes back. */

struct undo { int64_t what; uint64_t device, inode; int64_t size, at, length; };
enum { WRITTEN, SETTLED }; /* SETTLED: made anew or flushed, so that what was noted before is over */


static void note(int what, int file, off_t at, size_t length)
{
    struct stat now;
    if (!control || !control->armed || control->kind != POWER || fstat(file, &now) || !S_ISREG(now.st_mode))
        return;
    struct undo head = {what, now.st_dev, now.st_ino, now.st_size, at, 0};
    char *old = NULL;
    if (what == WRITTEN && at < now.st_size) {
        if (length > (size_t)(now.st_size - at))
            length = now.st_size - at;
        old = malloc(length);
        head.length = syscall(SYS_pread64, file, old, length, at);
        if (head.length < 0) { /* Open for writing only, so not by SQLite, whose locks a close() would drop. */
            char link[40];
            snprintf(link, sizeof link, "/proc/self/fd/%d", file);
            int reader = syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC);
            head.length = syscall(SYS_pread64, reader, old, length, at);
            syscall(SYS_close, reader);
        }
        if (head.length != (int64_t)length)
            abort();
    }
    append(".undo", (struct iovec[]){{&head, sizeof head}, {old, head.length}}, old ? 2 : 1);
    free(old);
}

static long refuse(enum kind kind)
{
    errno = kind == FULL ? ENOSPC : EIO;
    return -1;
}

/* Writing. */

#define WRITING(length, at, torn, real)                                      \
    char room[PATH_MAX];                                                     \
    const char *what = of_descriptor(file, room);                            \
    if (!what)                                                               \
        return real;                                                         \
    enum kind kind = next(FILE_ | ROOM | WRITE, __func__, what);             \
    if (kind == TORN) {                                                      \
        torn;                                                                \
        die();                                                               \
    }                                                                        \
    if (kind)                                                                \
        return refuse(kind);                                                 \
    note(WRITTEN, file, at, length);                                         \
    return real

static off_t end_or_place(int file)
{
    int flags = fcntl(file, F_GETFL);
    struct stat now;
    return flags & O_APPEND && !fstat(file, &now) ? now.st_size : lseek(file, 0, SEEK_CUR);
}

static size_t all(const struct iovec *parts, int count)
{
    size_t total = 0;
    for (int part = 0; part < count; part++)
        total += parts[part].iov_len;
    return total;
}

ssize_t write(int file, const void *data, size_t size)
{
    WRITING(size, end_or_place(file), REAL(write)(file, data, size / 2), REAL(write)(file, data, size));
}

ssize_t pwrite(int file, const void *data, size_t size, off_t at)
{
    WRITING(size, at, REAL(pwrite)(file, data, size / 2, at), REAL(pwrite)(file, data, size, at));
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at)
{
    WRITING(size, at, REAL(pwrite64)(file, data, size / 2, at), REAL(pwrite64)(file, data, size, at));
}

ssize_t writev(int file, const struct iovec *parts, int count)
{
    WRITING(all(parts, count), end_or_place(file), REAL(writev)(file, parts, count / 2), REAL(writev)(file, parts, count));
}

ssize_t pwritev(int file, const struct iovec *parts, int count, off_t at)
{
    WRITING(all(parts, count), at, REAL(pwritev)(file, parts, count / 2, at), REAL(pwritev)(file, parts, count, at));
}

ssize_t pwritev64(int file, const struct iovec *parts, int count, off64_t at)
{
    WRITING(all(parts, count), at, REAL(pwritev64)(file, parts, count / 2, at), REAL(pwritev64)(file, parts, count, at));
}

ssize_t sendfile(int file, int from, off_t *at, size_t size)
{
    WRITING(size, end_or_place(file), REAL(sendfile)(file, from, at, size / 2), REAL(sendfile)(file, from, at, size));
}

ssize_t sendfile64(int file, int from, off64_t *at, size_t size)
{
    WRITING(size, end_or_place(file), REAL(sendfile64)(file, from, at, size / 2), REAL(sendfile64)(file, from, at, size));
}

ssize_t copy_file_range(int from, off64_t *at, int file, off64_t *to, size_t size, unsigned flags)
{
    WRITING(size, to ? *to : end_or_place(file), REAL(copy_file_range)(from, at, file, to, size / 2, flags),
            REAL(copy_file_range)(from, at, file, to, size, flags));
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *stream)
{
    char room[PATH_MAX];
    int file = fileno(stream);
    const char *what = of_descriptor(file, room);
    if (!what)
        return REAL(fwrite)(data, size, count, stream);
    enum kind kind = next(FILE_ | ROOM | WRITE, __func__, what);
    if (kind == TORN) {
        REAL(fwrite)(data, size, count / 2, stream);
        fflush(stream);
        die();
    }
    if (kind) {
        refuse(kind);
        return 0;
    }
    fflush(stream);
    note(WRITTEN, file, end_or_place(file), size * count);
    size_t done = REAL(fwrite)(data, size, count, stream);
    fflush(stream); /* now, so that it comes before the next call that is counted */
    return done;
}

/* Of another length. */
#define SIZING(real)                                                         \
    char room[PATH_MAX];                                                     \
    const char *what = of_descriptor(file, room);                            \
    enum kind kind = what ? next(FILE_ | ROOM, __func__, what) : NONE;       \
    if (kind)                                                                \
        return refuse(kind);                                                 \
    if (what)                                                                \
        note(WRITTEN, file, size, SIZE_MAX);                                 \
    return real

int ftruncate(int file, off_t size) { SIZING(REAL(ftruncate)(file, size)); }
int ftruncate64(int file, off64_t size) { SIZING(REAL(ftruncate64)(file, size)); }

/* These return their error. */
#define RESERVING(real)                                                      \
    char room[PATH_MAX];                                                     \
    const char *what = of_descriptor(file, room);                            \
    enum kind kind = what ? next(FILE_ | ROOM, __func__, what) : NONE;       \
    if (kind)                                                                \
        return kind == FULL ? ENOSPC : EIO;                                  \
    if (what)                                                                \
        note(WRITTEN, file, at + size, 0);                                       \
    return real

int posix_fallocate(int file, off_t at, off_t size) { RESERVING(REAL(posix_fallocate)(file, at, size)); }
int posix_fallocate64(int file, off64_t at, off64_t size) { RESERVING(REAL(posix_fallocate64)(file, at, size)); }

/* Flushing. */

#define FLUSHING(real)                                                       \
    char room[PATH_MAX];                                                     \
    const char *what = of_descriptor(file, room);                            \
    enum kind kind = what ? next(FILE_, __func__, what) : NONE;              \
    if (kind)                                                                \
        return refuse(kind);                                                 \
    int done = real;                                                         \
    if (what && !done)                                                       \
        note(SETTLED, file, 0, 0);                                           \
    return done

int fsync(int file) { FLUSHING(REAL(fsync)(file)); }
int fdatasync(int file) { FLUSHING(REAL(fdatasync)(file)); }

/* Names. */

static int opened(int folder, const char *path, int flags, mode_t mode)
{
    char room[PATH_MAX];
    struct stat now;
    const char *what = flags & (O_CREAT | O_TRUNC) || (flags & O_TMPFILE) == O_TMPFILE ? of_path(folder, path, room) : NULL;
    int there = what && !(flags & O_DIRECTORY) && !fstatat(folder, path, &now, 0);
    if (what && (!there || (flags & O_TRUNC && now.st_size))) {
        enum kind kind = next(FILE_ | (there ? 0 : ROOM), there ? "truncate" : "create", what);
        if (kind)
            return refuse(kind);
        if (there) {
            int file = syscall(SYS_openat, folder, path, O_RDWR | O_CLOEXEC);
            note(WRITTEN, file, 0, SIZE_MAX);
            syscall(SYS_close, file);
        }
    } else {
        what = NULL;
    }
    int file = syscall(SYS_openat, folder, path, flags, mode);
    if (what && !there && file >= 0)
        note(SETTLED, file, 0, 0);
    return file;
}

#define OPENING(folder)                                                      \
    mode_t mode = 0;                                                         \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {               \
        va_list more;                                                        \
        va_start(more, flags);                                               \
        mode = va_arg(more, mode_t);                                         \
        va_end(more);                                                        \
    }                                                                        \
    return opened(folder, path, flags, mode)

int open(const char *path, int flags, ...) { OPENING(AT_FDCWD); }
int open64(const char *path, int flags, ...) { OPENING(AT_FDCWD); }
int openat(int folder, const char *path, int flags, ...) { OPENING(folder); }
int openat64(int folder, const char *path, int flags, ...) { OPENING(folder); }

#define NAMING(call, folder, path, real)                                     \
    char room[PATH_MAX];                                                     \
    const char *what = of_path(folder, path, room);                          \
    enum kind kind = what ? next(call, __func__, what) : NONE;               \
    if (kind)                                                                \
        return refuse(kind);                                                 \
    return real

int rename(const char *from, const char *to) { NAMING(FILE_, AT_FDCWD, to, REAL(rename)(from, to)); }
int renameat(int a, const char *from, int b, const char *to) { NAMING(FILE_, b, to, REAL(renameat)(a, from, b, to)); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags)
{
    NAMING(FILE_, b, to, REAL(renameat2)(a, from, b, to, flags));
}
int link(const char *from, const char *to) { NAMING(FILE_ | ROOM, AT_FDCWD, to, REAL(link)(from, to)); }
int linkat(int a, const char *from, int b, const char *to, int flags)
{
    NAMING(FILE_ | ROOM, b, to, REAL(linkat)(a, from, b, to, flags));
}
int symlink(const char *from, const char *to) { NAMING(FILE_ | ROOM, AT_FDCWD, to, REAL(symlink)(from, to)); }
int symlinkat(const char *from, int b, const char *to) { NAMING(FILE_ | ROOM, b, to, REAL(symlinkat)(from, b, to)); }
int unlink(const char *path) { NAMING(FILE_, AT_FDCWD, path, REAL(unlink)(path)); }
int unlinkat(int folder, const char *path, int flags) { NAMING(FILE_, folder, path, REAL(unlinkat)(folder, path, flags)); }
int rmdir(const char *path) { NAMING(FILE_, AT_FDCWD, path, REAL(rmdir)(path)); }
int mkdir(const char *path, mode_t mode) { NAMING(FILE_ | ROOM, AT_FDCWD, path, REAL(mkdir)(path, mode)); }
int mkdirat(int folder, const char *path, mode_t mode)
{
    NAMING(FILE_ | ROOM, folder, path, REAL(mkdirat)(folder, path, mode));
}
int chmod(const char *path, mode_t mode) { NAMING(FILE_, AT_FDCWD, path, REAL(chmod)(path, mode)); }
int fchmodat(int folder, const char *path, mode_t mode, int flags)
{
    NAMING(FILE_, folder, path, REAL(fchmodat)(folder, path, mode, flags));
}
int chown(const char *path, uid_t user, gid_t group) { NAMING(FILE_, AT_FDCWD, path, REAL(chown)(path, user, group)); }

/* PostgreSQL: https://www.postgresql.org/docs/15/protocol-message-formats.html */

#define SOCKETS 4096
static struct session {
    char ours, begun, type; /* one of PostgreSQL; past its first packets, which have no type; of the last whole message */
    unsigned char head[8], had;
    size_t left; /* bytes of the present message that are still to be sent */
} sessions[SOCKETS];

int connect(int file, const struct sockaddr *address, socklen_t length)
{
    const struct sockaddr_in *at = (const void *)address;
    int ours = control && address->sa_family == AF_INET && ntohs(at->sin_port) == control->port;
    if (file < SOCKETS)
        sessions[file] = (struct session){.ours = ours};
    if (ours && control->armed && control->lasting && control->kind == GONE) {
        errno = ECONNREFUSED;
        return -1;
    }
    return REAL(connect)(file, address, length);
}

/* Follow the messages of what is sent; tell the type of the last whole one, 0 where the last one is sent in part. */
static int follow(struct session *session, const unsigned char *data, size_t size)
{
    while (size) {
        if (session->left) {
            size_t some = size < session->left ? size : session->left;
            session->left -= some, data += some, size -= some;
            continue;
        }
        size_t wanted = session->begun ? 5 : 8;
        while (size && session->had < wanted)
            session->head[session->had++] = *data++, size--;
        if (session->had < wanted)
            return 0;
        uint32_t length, code;
        memcpy(&length, session->head + (session->begun ? 1 : 0), 4);
        memcpy(&code, session->head + 4, 4);
        session->left = ntohl(length) - (session->begun ? 4 : 8);
        session->type = session->begun ? session->head[0] : ntohl(code) == 196608 ? '!' : '?';
        session->begun |= session->type == '!';
        session->had = 0;
    }
    return session->left ? 0 : session->type;
}

/* Read what PostgreSQL answers, to the end, and tell nobody. */
static void swallow(int file, int type)
{
    unsigned char head[5];
    for (;;) {
        for (size_t had = 0; had < (type == '?' ? 1 : 5);) {
            struct pollfd ready = {file, POLLIN, 0};
            if (poll(&ready, 1, 60000) <= 0)
                abort();
            ssize_t got = REAL(recv)(file, head + had, (type == '?' ? 1 : 5) - had, 0);
            if (got <= 0)
                return;
            had += got;
        }
        if (type == '?')
            return;
        uint32_t length;
        memcpy(&length, head + 1, 4);
        for (size_t left = ntohl(length) - 4; left;) {
            char some[4096];
            struct pollfd ready = {file, POLLIN, 0};
            if (poll(&ready, 1, 60000) <= 0)
                abort();
            ssize_t got = REAL(recv)(file, some, left < sizeof some ? left : sizeof some, 0);
            if (got <= 0)
                return;
            left -= got;
        }
        if (strchr("ZGH", head[0]) || (strchr("!p", type) && strchr("RE", head[0])))
            return;
    }
}

ssize_t send(int file, const void *data, size_t size, int flags)
{
    if (!control || !control->armed || file >= SOCKETS || !sessions[file].ours)
        return REAL(send)(file, data, size, flags);
    struct session *session = &sessions[file];
    int type = follow(session, data, size);
    char what[400], *to = what;
    const unsigned char *from = data;
    *to++ = type ? type : '.', *to++ = ' ';
    for (size_t at = session->begun ? 5 : 8; at < size && to < what + sizeof what - 1; at++)
        *to++ = from[at] >= ' ' && from[at] < 127 ? from[at] : ' ';
    *to = 0;
    enum kind kind = next(SEND | (type && strchr("?!pQcf", type) ? ANSWERED : 0), __func__, what);
    if (kind == UNHEARD) {
        if (REAL(send)(file, data, size, flags) != (ssize_t)size)
            abort();
        swallow(file, type);
    }
    if (kind) {
        shutdown(file, SHUT_RDWR);
        if (kind == UNHEARD)
            return size;
        errno = ECONNRESET;
        return -1;
    }
    return REAL(send)(file, data, size, flags);
}
