/* The little of HTTP/1.1 that the load driver and the upstream share. */
#ifndef HTTP_H
#define HTTP_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    BUFFER = 64 * 1024,          /* room for a head and what comes with it */
    PIECE = 8 * 1024 * 1024,     /* most bytes of one sendfile or recv */
    FAULT = 200,                 /* room for the text of a fault */
};

static inline double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static inline void die(const char *what) {
    perror(what);
    exit(2);
}

/* The number of bytes up to and with the empty line, 0 while there is none. */
static inline size_t head_length(const char *bytes, size_t count) {
    const char *end = memmem(bytes, count, "\r\n\r\n", 4);
    return end ? (size_t)(end - bytes) + 4 : 0;
}

/* The value of a header up to its line's end, or NULL. `name` begins with CRLF, ends with a colon. */
static inline const char *header(const char *head, size_t length, const char *name) {
    size_t size = strlen(name);
    for (const char *line = head; (line = memchr(line, '\r', length - (size_t)(line - head)));
         line++) {
        if (length - (size_t)(line - head) < size) return NULL;
        if (strncasecmp(line, name, size) == 0) {
            for (line += size; *line == ' ';) line++;
            return line;
        }
    }
    return NULL;
}

static inline bool says_close(const char *head, size_t length) {
    const char *value = header(head, length, "\r\nConnection:");
    return value && strncasecmp(value, "close", 5) == 0;
}

/* Print text as JSON: what is not printable or would need an escape becomes a dot. */
static inline size_t json_text(char *to, size_t room, const char *text) {
    size_t length = 0;
    for (; *text && length + 1 < room; text++)
        to[length++] = *text < ' ' || *text > '~' || *text == '"' || *text == '\\' ? '.' : *text;
    to[length] = 0;
    return length;
}

static inline void no_delay(int socket) {
    int on = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static inline off_t file_size(int fd) {
    struct stat status;
    if (fstat(fd, &status) < 0) die("fstat");
    return status.st_size;
}

#endif
