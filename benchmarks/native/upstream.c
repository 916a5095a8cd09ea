/* An Immich that keeps nothing: `upstream BLOCK [--verify]`.
 *
 * Prints its port, then serves until it is killed:
 *   POST anything                    201 as Immich answers it; the body is dropped in the kernel
 *   GET  /api/assets/<n>/original    n bytes
 *   GET  /stats                      what came since the last time it was asked
 *   GET  anything else               1 KB of JSON
 * A body that is a form must hold `assetData` last and end in its closing boundary. With --verify
 * each byte of the file is compared with BLOCK, which files repeat from its start.
 */
#include "http.h"

#include <signal.h>
#include <sys/mman.h>

enum state { HEAD, FORM, BODY, ANSWER };

struct connection {
    int fd;
    enum state state;
    bool close;
    bool broken;
    char buffer[BUFFER];
    size_t have, head;
    long long length, position, file_start, file_end;
    char end[128], tail[128];
    size_t end_length, tail_length;
    char answer[2048];
    size_t answer_length, answered;
    long long file_left;
    off_t file_offset;
};

static int block_fd;
static off_t block_size;
static const char *block; /* mapped when files are to be verified, else NULL */
static char scratch[1024 * 1024];

static struct {
    long long uploads, file_bytes, faults;
    double first_byte;
    char fault[FAULT];
} stats;

static const char CREATED[] =
    "{\"id\":\"0b9f4a35-61c7-4639-9e60-61a11c4bbfba\",\"status\":\"created\"}";

static void fault(struct connection *c, const char *what) {
    if (!stats.faults++) json_text(stats.fault, sizeof stats.fault, what);
    c->broken = true;
}

static void answer(struct connection *c, const char *status, const char *body) {
    c->answer_length = (size_t)snprintf(
        c->answer, sizeof c->answer,
        "HTTP/1.1 %s\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %zu\r\n"
        "%s\r\n%s",
        status, strlen(body), c->close ? "Connection: close\r\n" : "", body);
    c->answered = 0;
    c->file_left = 0;
    c->state = ANSWER;
}

static void answer_get(struct connection *c) {
    static const char route[] = "GET /api/assets/";
    char body[1100];
    if (strncmp(c->buffer, route, sizeof route - 1) == 0) {
        c->file_left = atoll(c->buffer + sizeof route - 1);
        c->file_offset = 0;
        c->answer_length = (size_t)snprintf(
            c->answer, sizeof c->answer,
            "HTTP/1.1 200 OK\r\nContent-Type: image/heic\r\nContent-Length: %lld\r\n%s\r\n",
            c->file_left, c->close ? "Connection: close\r\n" : "");
        c->answered = 0;
        c->state = ANSWER;
        return;
    }
    if (strncmp(c->buffer, "GET /stats ", 11) == 0) {
        snprintf(body, sizeof body,
                 "{\"uploads\":%lld,\"file_bytes\":%lld,\"faults\":%lld,\"fault\":\"%s\","
                 "\"first_byte\":%.6f}",
                 stats.uploads, stats.file_bytes, stats.faults, stats.fault, stats.first_byte);
        memset(&stats, 0, sizeof stats);
    } else {
        memset(body, 'x', sizeof body);
        memcpy(body, "{\"about\":\"", 10);
        memcpy(body + 1022, "\"}", 3);
    }
    answer(c, "200 OK", body);
}

/* Count, verify and remember bytes of the body that were read. */
static void take(struct connection *c, const char *bytes, size_t count) {
    while (count && !c->broken) {
        size_t part;
        if (c->position < c->file_end) {
            long long left = c->file_end - c->position;
            off_t offset = (off_t)((c->position - c->file_start) % block_size);
            part = count < (size_t)left ? count : (size_t)left;
            if (block && part > (size_t)(block_size - offset)) part = (size_t)(block_size - offset);
            if (block && memcmp(bytes, block + offset, part) != 0) fault(c, "a byte is wrong");
        } else if (c->position < c->length) {
            long long left = c->length - c->position;
            part = count < (size_t)left ? count : (size_t)left;
            memcpy(c->tail + c->tail_length, bytes, part);
            c->tail_length += part;
        } else {
            fault(c, "more came than was announced");
            return;
        }
        c->position += (long long)part;
        bytes += part;
        count -= part;
    }
}

static void start_body(struct connection *c) {
    const char *length = header(c->buffer, c->head, "\r\nContent-Length:");
    if (!length) {
        fault(c, "a body without Content-Length");
        return;
    }
    c->length = c->file_end = atoll(length);
    c->position = c->file_start = 0;
    c->end_length = c->tail_length = 0;
    if (!stats.first_byte) stats.first_byte = now();
    const char *type = header(c->buffer, c->head, "\r\nContent-Type:");
    if (!type || strncasecmp(type, "multipart/", 10) != 0) {
        c->state = BODY;
        take(c, c->buffer + c->head, c->have - c->head);
        return;
    }
    const char *boundary = strstr(type, "boundary=");
    if (!boundary) {
        fault(c, "a form without boundary");
        return;
    }
    boundary += 9 + (boundary[9] == '"');
    int size = (int)strcspn(boundary, "\";\r");
    c->end_length = (size_t)snprintf(c->end, sizeof c->end, "\r\n--%.*s--\r\n", size, boundary);
    c->file_end = c->length - (long long)c->end_length;
    c->state = FORM;
}

/* Find where the file begins in the form; false while more has to come. */
static bool find_file(struct connection *c) {
    const char *body = c->buffer + c->head;
    size_t count = c->have - c->head;
    const char *part = memmem(body, count, "name=\"assetData\"", 16);
    size_t head = part ? head_length(part, count - (size_t)(part - body)) : 0;
    if (!head) {
        if (c->have == BUFFER) fault(c, "a form without assetData");
        return false;
    }
    c->file_start = c->position = part - body + (long long)head;
    c->state = BODY;
    take(c, body + c->file_start, count - (size_t)c->file_start);
    return true;
}

static void finish_body(struct connection *c) {
    if (c->tail_length != c->end_length || memcmp(c->tail, c->end, c->end_length) != 0) {
        fault(c, "the form does not end in its closing boundary");
        return;
    }
    stats.uploads++;
    stats.file_bytes += c->file_end - c->file_start;
    answer(c, "201 Created", CREATED);
}

/* Do what can be done without waiting; false once the connection is over. */
static bool serve(struct connection *c) {
    ssize_t count = 0;
    while (!c->broken) {
        if (c->state == HEAD || c->state == FORM) {
            count = recv(c->fd, c->buffer + c->have, BUFFER - c->have, 0);
            if (count <= 0) break;
            c->have += (size_t)count;
            if (c->state == FORM) {
                find_file(c);
                continue;
            }
            if (!(c->head = head_length(c->buffer, c->have))) {
                if (c->have == BUFFER) fault(c, "a head that is too long");
                continue;
            }
            c->close = says_close(c->buffer, c->head) ||
                       memmem(c->buffer, c->head, " HTTP/1.0\r\n", 11);
            if (strncmp(c->buffer, "POST ", 5) != 0) {
                answer_get(c);
                continue;
            }
            start_body(c);
            if (!c->broken && c->state == FORM) find_file(c);
        } else if (c->state == BODY) {
            long long left = c->file_end - c->position;
            if (left > 0 && !block) {
                /* Linux: TCP drops the bytes that it counts, nothing is copied (tcp(7)). */
                count = recv(c->fd, NULL, (size_t)(left < PIECE ? left : PIECE), MSG_TRUNC);
                if (count > 0) c->position += count;
            } else if (left > 0 || c->position < c->length) {
                if (left <= 0) left = c->length - c->position;
                if (left > (long long)sizeof scratch) left = sizeof scratch;
                count = recv(c->fd, scratch, (size_t)left, 0);
                if (count > 0) take(c, scratch, (size_t)count);
            } else {
                finish_body(c);
                continue;
            }
            if (count == 0) fault(c, "the body broke off");
            if (count <= 0) break;
        } else if (c->answered < c->answer_length) {
            int flags = MSG_NOSIGNAL | (c->file_left ? MSG_MORE : 0);
            count = send(c->fd, c->answer + c->answered, c->answer_length - c->answered, flags);
            if (count < 0) break;
            c->answered += (size_t)count;
        } else if (c->file_left) {
            off_t room = block_size - c->file_offset;
            size_t size = (size_t)(c->file_left < room ? c->file_left : room);
            count = sendfile(c->fd, block_fd, &c->file_offset, size < PIECE ? size : PIECE);
            if (count <= 0) break;
            c->file_left -= count;
            if (c->file_offset == block_size) c->file_offset = 0;
        } else {
            if (c->close) return false;
            c->state = HEAD;
            c->have = 0;
        }
    }
    return !c->broken && count < 0 && errno == EAGAIN;
}

int main(int count, char **arguments) {
    if (count < 2 || (block_fd = open(arguments[1], O_RDONLY)) < 0) die("BLOCK");
    block_size = file_size(block_fd);
    if (count > 2) {
        block = mmap(NULL, (size_t)block_size, PROT_READ, MAP_SHARED, block_fd, 0);
        if (block == MAP_FAILED) die("mmap");
    }
    signal(SIGPIPE, SIG_IGN); /* sendfile has no MSG_NOSIGNAL */
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(listener, (struct sockaddr *)&address, size) < 0 || listen(listener, 1024) < 0)
        die("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    int poll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[64];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    while (true) {
        int ready = epoll_wait(poll, events, 64, -1);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) {
                int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0) continue;
                no_delay(fd);
                if (!(c = calloc(1, sizeof *c))) die("calloc");
                c->fd = fd;
                event = (struct epoll_event){.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                             .data.ptr = c};
                epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
            } else if (!serve(c)) {
                close(c->fd);
                free(c);
            }
        }
    }
}
